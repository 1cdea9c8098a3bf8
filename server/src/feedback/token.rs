//! What proves that an answer was this server's, and hides who somebody is: a key that stays with the store.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::disk;
use super::record::Millis;

const FILE: &str = "key";

/// 32 random bytes.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("it is not a token of this answer")]
    Forged,
    #[error("it has expired")]
    Expired,
}

impl Key {
    /// The key of a store's folder, made where there is none.
    ///
    /// # Errors
    /// Where it cannot be read or written, or is no key.
    pub(crate) fn open(folder: &Path) -> io::Result<Key> {
        match Key::read(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
                let hex = hex(&key) + "\n";
                disk::write_whole(folder, FILE, hex.as_bytes())?;
                Ok(Key(key))
            }
            other => other,
        }
    }

    /// The key of a store that is there.
    ///
    /// # Errors
    /// Where it cannot be read or is no key.
    pub fn read(folder: &Path) -> io::Result<Key> {
        let text = std::fs::read_to_string(folder.join(FILE))?;
        let text = text.trim();
        let mut key = [0; 32];
        let good = text.len() == 64
            && key.iter_mut().zip(text.as_bytes().chunks(2)).all(|(byte, pair)| {
                let parsed =
                    std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
                parsed.map(|parsed| *byte = parsed).is_some()
            });
        let message = "the key file does not hold 64 hexadecimal digits";
        good.then_some(Key(key)).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, message))
    }

    fn mac(&self, parts: &[&str]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| unreachable!("of any length"));
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// A name for `text` that tells nothing of it to those who do not have the key: 32 hexadecimal digits, none for an
    /// empty text. The same text has another name as another `kind`: `user`, `session`, `tenant`.
    pub fn hash(&self, kind: &str, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        hex(&self.mac(&["name", kind, text]).finalize().into_bytes()[..16])
    }

    /// A key for another purpose, of this one (HMAC as in the expansion of HKDF, RFC 5869): the same at each start, and
    /// of no use for anything else.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        self.mac(&["derive", purpose]).finalize().into_bytes().into()
    }

    /// A token that lets whoever has it vote on this answer until then.
    pub(crate) fn token(&self, message: &str, tenant: &str, expires: Millis) -> String {
        let expires = format!("{:x}", expires / 1000);
        let mac = self.mac(&["token", message, tenant, &expires]).finalize().into_bytes();
        format!("v1.{expires}.{}", hex(&mac))
    }

    /// Whether the token is this answer's.
    pub(crate) fn check(
        &self,
        token: &str,
        message: &str,
        tenant: &str,
        now: Millis,
    ) -> Result<(), TokenError> {
        let mut parts = token.split('.');
        let (Some("v1"), Some(expires), Some(mac), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Forged);
        };
        let seconds = u64::from_str_radix(expires, 16).map_err(|_| TokenError::Forged)?;
        let sent: Option<Vec<u8>> = (mac.len() == 64 && mac.is_ascii())
            .then(|| (0..32).map(|i| u8::from_str_radix(&mac[2 * i..2 * i + 2], 16).ok()).collect())
            .flatten();
        let sent = sent.ok_or(TokenError::Forged)?;
        // In constant time.
        let real = self.mac(&["token", message, tenant, expires]).verify_slice(&sent);
        real.map_err(|_| TokenError::Forged)?;
        if seconds < now / 1000 { Err(TokenError::Expired) } else { Ok(()) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_answer_of_one_tenant_for_a_time() {
        let key = Key([7; 32]);
        let token = key.token("m", "t", 60_000);
        assert_eq!(key.check(&token, "m", "t", 59_000), Ok(()));
        assert_eq!(key.check(&token, "m", "t", 61_000), Err(TokenError::Expired));
        assert_eq!(key.check(&token, "n", "t", 0), Err(TokenError::Forged));
        assert_eq!(key.check(&token, "m", "", 0), Err(TokenError::Forged));
        assert_eq!(key.check(&token, "mt", "", 0), Err(TokenError::Forged));
        assert_eq!(Key([8; 32]).check(&token, "m", "t", 0), Err(TokenError::Forged));
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'1' { b'2' } else { b'1' };
            assert!(key.check(std::str::from_utf8(&forged).unwrap(), "m", "t", 0).is_err(), "{at}");
            assert!(key.check(&token[..at], "m", "t", 0).is_err(), "{at}");
        }
        for junk in ["", "v1", "v1..", "v1.x.y", "v1.+1.é", &"v1.".repeat(1000)] {
            assert_eq!(key.check(junk, "m", "t", 0), Err(TokenError::Forged), "{junk}");
        }
    }

    #[test]
    fn a_key_survives_and_is_its_owners() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let key = Key::open(folder.path()).unwrap();
        assert_eq!(Key::open(folder.path()).unwrap().0, key.0);
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(key.hash("user", "a"), key.hash("session", "a"));
        let derived = Key::open(folder.path()).unwrap().derive("evidence");
        assert_eq!(derived, key.derive("evidence"));
        assert!(
            derived != key.derive("other") && derived != key.0 && derived != Key([1; 32]).derive("evidence")
        );
        assert_eq!(key.hash("user", ""), "");
        for bad in ["", "zz", &"0".repeat(63), &"é".repeat(32)] {
            std::fs::write(folder.path().join(FILE), bad).unwrap();
            assert!(Key::open(folder.path()).is_err(), "{bad:?}");
        }
    }
}
