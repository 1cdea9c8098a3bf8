//! The events of one answer as they were written, for the connection that reads them now and for one that comes back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::assistant::session::Weigh;

/// Bytes that are kept; where an answer has more, its oldest events go.
const MOST_BYTES: usize = 4 << 20;

/// A log with one writer and any number of readers.
#[derive(Debug)]
pub(super) struct Log {
    message: String,
    /// Headers that go with the events.
    pub(super) headers: Vec<(&'static str, &'static str)>,
    frames: Mutex<Frames>,
    /// Events up to now; its receivers are the readers.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Frames {
    list: VecDeque<String>,
    /// The number of the first one that is kept.
    first: u64,
    bytes: usize,
    ended: bool,
}

/// What a reader gets.
pub(super) enum Read {
    /// The next events.
    Frames(String),
    /// There are no more.
    End,
    /// What comes next is no longer kept.
    Lost,
}

impl Log {
    pub(super) fn new(message: &str, headers: Vec<(&'static str, &'static str)>) -> Arc<Self> {
        let (frames, written) = (Mutex::default(), watch::Sender::new(0));
        Arc::new(Log { message: message.to_owned(), headers, frames, written })
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub(super) fn write(&self, data: &str) {
        let mut frames = self.frames();
        let number = frames.first + frames.list.len() as u64;
        let frame = format!("id: {}:{number}\ndata: {data}\n\n", self.message);
        frames.bytes += frame.len();
        frames.list.push_back(frame);
        while frames.bytes > MOST_BYTES
            && let Some(old) = frames.list.pop_front()
        {
            frames.bytes -= old.len();
            frames.first += 1;
        }
        drop(frames);
        self.written.send_modify(|written| *written += 1);
    }

    /// No more will be written.
    pub(super) fn end(&self) {
        self.frames().ended = true;
        self.written.send_modify(|written| *written += 1);
    }

    /// Bytes that are kept.
    fn bytes(&self) -> usize {
        self.frames().bytes
    }

    pub(super) fn has_ended(&self) -> bool {
        self.frames().ended
    }

    /// Waits until nobody has read for so long.
    pub(super) async fn abandoned(&self, grace: Duration) {
        loop {
            self.written.closed().await;
            tokio::time::sleep(grace).await;
            if self.written.receiver_count() == 0 {
                return;
            }
        }
    }

    /// A reader behind the event of this id, `message:number`; one from the start where the id is of another answer.
    pub(super) fn reader(self: &Arc<Self>, last_event_id: Option<&str>) -> Reader {
        let number = last_event_id.and_then(|id| id.rsplit_once(':'));
        let number = number.filter(|(message, _)| *message == self.message);
        let next =
            number.and_then(|(_, number)| number.parse::<u64>().ok()).map_or(0, |n| n.saturating_add(1));
        Reader { log: self.clone(), next, written: self.written.subscribe() }
    }
}

impl Weigh for Arc<Log> {
    fn weight(&self) -> usize {
        self.bytes()
    }
}

/// One that reads.
pub(super) struct Reader {
    log: Arc<Log>,
    next: u64,
    written: watch::Receiver<u64>,
}

impl Reader {
    /// Waits for events. May be dropped while it waits.
    pub(super) async fn read(&mut self) -> Read {
        const MOST: usize = 32 << 10;
        loop {
            self.written.mark_unchanged();
            {
                let frames = self.log.frames();
                if self.next < frames.first {
                    return Read::Lost;
                }
                let mut text = String::new();
                let from = (self.next - frames.first) as usize;
                for frame in frames.list.iter().skip(from).take_while({
                    let mut bytes = 0;
                    move |frame| {
                        bytes += frame.len();
                        bytes <= MOST + frame.len()
                    }
                }) {
                    text += frame;
                    self.next += 1;
                }
                if !text.is_empty() {
                    return Read::Frames(text);
                }
                if frames.ended {
                    return Read::End;
                }
            }
            if self.written.changed().await.is_err() {
                return Read::End;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reader: Reader) -> (String, bool) {
        let mut text = String::new();
        loop {
            match reader.read().await {
                Read::Frames(more) => text += &more,
                Read::End => return (text, true),
                Read::Lost => return (text, false),
            }
        }
    }

    #[tokio::test]
    async fn readers_come_and_go() {
        let log = Log::new("m", Vec::new());
        let live = tokio::spawn(all(log.reader(None)));
        for i in 0..500 {
            log.write(&format!("{i}{}", "x".repeat(i)));
            if i % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        log.end();
        let (whole, ended) = live.await.unwrap();
        assert!(ended);
        for last in [0, 1, 250, 499] {
            let (rest, ended) = all(log.reader(Some(&format!("m:{last}")))).await;
            let seen = whole.find(&format!("id: m:{}\n", last + 1)).unwrap_or(whole.len());
            assert!(ended && rest == whole[seen..], "{last}");
        }
        for other in ["x:3", "m", "m:x", ""] {
            assert_eq!(all(log.reader(Some(other))).await.0, whole, "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_no_longer_kept_is_not_skipped_in_silence() {
        let log = Log::new("m", Vec::new());
        for _ in 0..6 {
            log.write(&"x".repeat(1 << 20));
        }
        log.end();
        assert!(!all(log.reader(None)).await.1);
        assert!(all(log.reader(Some("m:4"))).await.1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_its_reader_to_come_back() {
        let (log, grace) = (Log::new("m", Vec::new()), Duration::from_secs(5));
        let first = log.reader(None);
        let shared = log.clone();
        let waiting = tokio::spawn(async move { shared.abandoned(grace).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(first);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let second = log.reader(None);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        drop(second);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(waiting.is_finished());
    }
}
