//! Models by their name on the Hugging Face hub: `org/name`, or `org/name@revision`.
//!
//! A model is looked up in the cache that other tools of the hub share (`models--org--name/{blobs,refs,snapshots}`) and
//! downloaded into it where it is not there (`download`). Only what serving needs is fetched: configuration,
//! tokenizer, chat template and safetensors.

mod cache;
mod download;

use cache::Repository;
use std::path::{Path, PathBuf};

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a path that exists nor a name on the hub.
    #[error("{model:?} is neither an existing path nor a hub id (org/name, or org/name@revision): {why}")]
    Name {
        /// What was given.
        model: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Not in the cache, and downloads are switched off.
    #[error("{model} is not (completely) in the cache {}; HF_HUB_OFFLINE forbids downloading it", cache.display())]
    Offline {
        /// The model.
        model: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub does not show this model to this user.
    #[error(
        "the hub refuses {model} (status {status}): if it is private or gated, ask for access on its page and set \
         HF_TOKEN to a token of your account; otherwise check the spelling"
    )]
    Refused {
        /// The model, or one of its files.
        model: String,
        /// 401 or 403.
        status: u16,
    },
    /// The hub knows no such model or revision.
    #[error("the hub at {endpoint} has no {model}: check the name and the revision")]
    Missing {
        /// The model, or one of its files.
        model: String,
        /// `HF_ENDPOINT`.
        endpoint: String,
    },
    /// The model is there, but not in a form that can be served.
    #[error("{model}: {why}")]
    Unusable {
        /// The model.
        model: String,
        /// What is missing.
        why: &'static str,
    },
    /// The hub cannot be reached, or the connection broke again and again.
    #[error(
        "cannot download {what}: {why}; check the connection and HF_ENDPOINT, and start again: what has arrived is kept"
    )]
    Network {
        /// The address.
        what: String,
        /// What failed.
        why: String,
    },
    /// The hub answered something that makes no sense.
    #[error("unexpected answer for {what}: {why}")]
    Answer {
        /// The address.
        what: String,
        /// What was unexpected.
        why: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Told of every file with the bytes that are there and all its bytes.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Where models come from and where they are kept.
#[derive(Clone)]
pub struct Hub {
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// The address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Sent to `endpoint`, and never to where it redirects.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, offline, .. } = self;
        write!(f, "Hub {{ cache: {cache:?}, endpoint: {endpoint:?}, offline: {offline} }}")
    }
}

/// The local files of a model: of a path, that path; of a hub id, a folder of the cache, filled if it has to be.
///
/// # Errors
/// See [`HubError`].
pub fn resolve(model: &str, progress: Progress<'_>) -> Result<PathBuf, HubError> {
    Hub::from_env().resolve(model, progress)
}

impl Hub {
    /// As the environment says: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` have the meaning that the hub's own client gives them.
    pub fn from_env() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            path("HF_HOME").unwrap_or_else(|| caches.unwrap_or_default().join("huggingface"))
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let yes = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home().join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: text("HF_TOKEN"),
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// As [`resolve`](fn@resolve), with these settings.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn resolve(&self, model: &str, progress: Progress<'_>) -> Result<PathBuf, HubError> {
        if Path::new(model).exists() {
            return Ok(PathBuf::from(model));
        }
        let id = ModelId::parse(model).map_err(|why| HubError::Name { model: model.to_owned(), why })?;
        let repository = Repository::new(&self.cache, &id);
        let cached = repository.snapshot(&id.revision);
        match cached {
            Some(snapshot) if cache::complete(&snapshot) => Ok(snapshot),
            // The tokenizer may be missing because the model has none; what can be done with that shows later.
            Some(snapshot) if self.offline && cache::has_weights(&snapshot) => Ok(snapshot),
            _ if self.offline => {
                Err(HubError::Offline { model: model.to_owned(), cache: self.cache.clone() })
            }
            _ => download::model(self, &id, &repository, progress),
        }
    }
}

/// A model's name on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelId {
    organisation: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl ModelId {
    /// The hub's own rules for names, which also keep a name from leaving the cache's folder.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, name) = id.split_once('/').ok_or("there is no slash in it")?;
        for part in [organisation, name] {
            if part.is_empty() || part.len() > 96 {
                return Err("both sides of the slash have 1 to 96 characters");
            }
            if !part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char)) {
                return Err("only letters, digits, '-', '_' and '.' may stand beside the slash");
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return Err("'-' and '.' stand neither first nor last");
            }
            if part.contains("--") || part.contains("..") {
                return Err("'--' and '..' are not allowed");
            }
        }
        let plain = |part: &str| {
            let known = part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char));
            known && !part.is_empty() && !part.starts_with('.') && part.len() <= 128
        };
        if revision.len() > 255 || !revision.split('/').all(plain) {
            return Err("the revision is no branch, tag or commit");
        }
        let [organisation, name, revision] = [organisation, name, revision].map(str::to_owned);
        Ok(Self { organisation, name, revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_hub_gives_are_taken_and_others_refused() {
        let id = ModelId::parse("org/na-me_1.5@refs/pr/1").unwrap();
        assert_eq!(
            (id.organisation.as_str(), id.name.as_str(), id.revision.as_str()),
            ("org", "na-me_1.5", "refs/pr/1")
        );
        assert_eq!(ModelId::parse("org/name").unwrap().to_string(), "org/name");
        for wrong in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "../etc",
            "org/..",
            "org/.name",
            "org/a..b",
            "org/a--b",
            "org/a b",
            "org/n@",
            "org/n@../x",
            "org/n@a//b",
            "org/n@/x",
            "org/n\0",
            "org/é",
            "org/n@a b",
            "~/model",
            "./m/n",
        ] {
            assert!(ModelId::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(ModelId::parse(&format!("org/{}", "n".repeat(97))).is_err());
    }
}
