//! A key of the cluster in the hands of who has it. It encrypts the data keys of directories and nothing else, so that it is
//! changed without touching data.
//!
//! ```text
//! 32 random bytes, or PBKDF2-HMAC-SHA256(passphrase, salt, rounds)
//!   └─ HKDF-SHA256 ─┬─ "check": what the metadata server keeps, to tell whether a key is the right one
//!                   └─ "wrap": AES-256-GCM of data keys
//! ```

use std::num::NonZeroU32;

use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes256Gcm, KeyInit};
use aws_lc_rs::hkdf::{self, HKDF_SHA256};
use aws_lc_rs::{constant_time, pbkdf2, rand};
use dfs_proto::class::check_key_name;
use dfs_proto::encoding::{TAG_LENGTH, WRAPPED_LENGTH};
use dfs_proto::limits::MIN_PASSPHRASE_ROUNDS;
use dfs_proto::meta::{self, KeySource};
use dfs_proto::{Code, Failure};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of every key.
pub const KEY_LENGTH: usize = 32;
/// Bytes of the nonce before a wrapped data key.
const NONCE_LENGTH: usize = WRAPPED_LENGTH - KEY_LENGTH - TAG_LENGTH;
/// Bytes of a passphrase's salt.
const SALT_LENGTH: usize = 32;

/// Secret bytes, wiped when they go.
pub type Secret = Zeroizing<Vec<u8>>;

/// A key of the cluster.
pub struct MasterKey {
    name: String,
    generation: u32,
    wrapping: SecretKey,
}

/// What the blocks of a directory's files are encrypted with, by way of a key for each chunk. See [`crate::encoding`].
pub struct DataKey(SecretKey);

/// On the heap, so that it is not left behind where it was moved from; wiped when it goes.
type SecretKey = Box<Zeroizing<[u8; KEY_LENGTH]>>;

fn no_key(message: String) -> Failure {
    Failure::new(Code::NoKey, message)
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| no_random_bytes())?;
    Ok(bytes)
}

fn no_random_bytes() -> Failure {
    Failure::new(Code::InputOutput, "the operating system gives no random bytes")
}

/// The bytes of a key that did not exist before.
pub(super) fn fresh_secret() -> Result<Secret, Failure> {
    let mut secret = Secret::new(vec![0; KEY_LENGTH]);
    rand::fill(&mut secret).map_err(|_| no_random_bytes())?;
    Ok(secret)
}

/// 32 bytes from a secret, for one purpose.
pub(crate) fn derive(secret: &[u8], salt: &[u8], purpose: &[&[u8]]) -> Result<SecretKey, Failure> {
    let mut derived = SecretKey::default();
    let extracted = hkdf::Salt::new(HKDF_SHA256, salt).extract(secret);
    let expanded = extracted.expand(purpose, HKDF_SHA256).and_then(|key| key.fill(&mut derived[..]));
    expanded.map_err(|_| Failure::new(Code::InputOutput, "deriving a key failed"))?;
    Ok(derived)
}

impl MasterKey {
    /// A key of this name that did not exist before, and what the metadata server is to know of it. INVALID for a secret that
    /// is none.
    pub fn create(
        name: &str,
        source: KeySource,
        secret: &[u8],
        generation: u32,
    ) -> Result<(meta::Key, Self), Failure> {
        check_key_name(name)?;
        let (salt, rounds) = match source {
            KeySource::KeyFile => (Vec::new(), 0),
            KeySource::Passphrase => (random::<SALT_LENGTH>()?.to_vec(), MIN_PASSPHRASE_ROUNDS),
        };
        let mut record = meta::Key {
            name: name.to_owned(),
            source: source.into(),
            salt: salt.into(),
            rounds,
            generation,
            ..meta::Key::default()
        };
        let root = root(&record, secret)?;
        record.check = derive(&root[..], b"", &[b"check", name.as_bytes()])?.to_vec().into();
        let key = Self::of_root(&record, &root)?;
        Ok((record, key))
    }

    /// The key that `record` tells of. NO_KEY when the secret is another one, or none. A passphrase takes some tenths of a
    /// second of one core.
    pub fn open(record: &meta::Key, secret: &[u8]) -> Result<Self, Failure> {
        let root = root(record, secret)?;
        let check = derive(&root[..], b"", &[b"check", record.name.as_bytes()])?;
        if constant_time::verify_slices_are_equal(&check[..], &record.check).is_err() {
            let what = match record.source() {
                KeySource::KeyFile => "these bytes are another key",
                KeySource::Passphrase => "the passphrase is another one",
            };
            return Err(no_key(format!("that is not the key {:?}: {what}", record.name)));
        }
        Self::of_root(record, &root)
    }

    fn of_root(record: &meta::Key, root: &SecretKey) -> Result<Self, Failure> {
        let wrapping = derive(&root[..], b"", &[b"wrap", record.name.as_bytes()])?;
        Ok(Self { name: record.name.clone(), generation: record.generation, wrapping })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Encrypts a data key for the metadata server to keep.
    pub fn wrap(&self, data_key: &DataKey) -> Result<meta::DataKey, Failure> {
        let nonce = random::<NONCE_LENGTH>()?;
        let mut wrapped = Vec::with_capacity(WRAPPED_LENGTH);
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(&data_key.0[..]);
        let tag = self
            .cipher()
            .encrypt_in_place_detached(&nonce.into(), self.name.as_bytes(), &mut wrapped[NONCE_LENGTH..])
            .map_err(|_| Failure::new(Code::InputOutput, "encrypting a data key failed"))?;
        wrapped.extend_from_slice(&tag);
        Ok(meta::DataKey {
            id: 0,
            key: self.name.clone(),
            generation: self.generation,
            wrapped: wrapped.into(),
        })
    }

    /// Decrypts a data key. NO_KEY when it was encrypted with another key, or in another generation of this one.
    pub fn unwrap(&self, data_key: &meta::DataKey) -> Result<DataKey, Failure> {
        let wrong = || {
            no_key(format!(
                "data key {} is not encrypted with the key {:?} as it is here: it was rotated, or is damaged",
                data_key.id, self.name
            ))
        };
        let (nonce, rest) = data_key.wrapped.split_first_chunk::<NONCE_LENGTH>().ok_or_else(wrong)?;
        let (ciphertext, tag) = rest.split_first_chunk::<KEY_LENGTH>().ok_or_else(wrong)?;
        let tag: &[u8; TAG_LENGTH] = tag.try_into().map_err(|_| wrong())?;
        let mut plain = SecretKey::default();
        plain.copy_from_slice(ciphertext);
        self.cipher()
            .decrypt_in_place_detached(&(*nonce).into(), self.name.as_bytes(), &mut plain[..], tag.into())
            .map_err(|_| wrong())?;
        Ok(DataKey(plain))
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&**self.wrapping).into())
    }
}

impl DataKey {
    /// A fresh one.
    pub fn random() -> Result<Self, Failure> {
        let mut key = SecretKey::default();
        let mut bytes = random::<KEY_LENGTH>()?;
        key.copy_from_slice(&bytes);
        bytes.zeroize();
        Ok(Self(key))
    }

    /// The secret itself: to derive from, and for tests to look for where it must not be.
    pub fn expose(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

/// What all of a key is derived from.
fn root(record: &meta::Key, secret: &[u8]) -> Result<SecretKey, Failure> {
    let mut root = SecretKey::default();
    let source = KeySource::try_from(record.source)
        .map_err(|_| no_key(format!("this program does not know how the key {:?} is made", record.name)))?;
    match source {
        KeySource::KeyFile if secret.len() == KEY_LENGTH => root.copy_from_slice(secret),
        KeySource::KeyFile => {
            return Err(no_key(format!("a key has {KEY_LENGTH} bytes, here are {}", secret.len())));
        }
        KeySource::Passphrase => {
            let passphrase = secret.strip_suffix(b"\n").unwrap_or(secret);
            let passphrase = passphrase.strip_suffix(b"\r").unwrap_or(passphrase);
            if passphrase.is_empty() {
                return Err(no_key("the passphrase is empty".to_owned()));
            }
            let rounds = NonZeroU32::new(record.rounds.max(MIN_PASSPHRASE_ROUNDS)).expect("not zero");
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &record.salt, passphrase, &mut root[..]);
        }
    }
    Ok(root)
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterKey")
            .field("name", &self.name)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_bytes_and_by_nothing_else() {
        let (record, key) = MasterKey::create("k", KeySource::KeyFile, &[7; 32], 1).unwrap();
        let data_key = DataKey::random().unwrap();
        let wrapped = key.wrap(&data_key).unwrap();
        assert_eq!(wrapped.wrapped.len(), WRAPPED_LENGTH);
        assert!(
            !wrapped.wrapped.windows(8).any(|window| data_key.expose().windows(8).any(|key| key == window))
        );
        let again = MasterKey::open(&record, &[7; 32]).unwrap();
        assert_eq!(again.unwrap(&wrapped).unwrap().expose(), data_key.expose());
        for wrong in [&[8; 32][..], &[7; 31], &[7; 33], b""] {
            assert_eq!(MasterKey::open(&record, wrong).unwrap_err().code, Code::NoKey);
        }
        // The same bytes under another name are another key.
        let (other, other_key) = MasterKey::create("j", KeySource::KeyFile, &[7; 32], 1).unwrap();
        assert_ne!(other.check, record.check);
        assert_eq!(other_key.unwrap(&wrapped).unwrap_err().code, Code::NoKey);
        assert!(MasterKey::create("a/b", KeySource::KeyFile, &[7; 32], 1).is_err());
    }

    #[test]
    fn every_bit_of_a_wrapped_key_counts() {
        let (_, key) = MasterKey::create("k", KeySource::KeyFile, &[7; 32], 1).unwrap();
        let wrapped = key.wrap(&DataKey::random().unwrap()).unwrap();
        for at in 0..WRAPPED_LENGTH {
            let mut bytes = wrapped.wrapped.to_vec();
            bytes[at] ^= 1 << (at % 8);
            let damaged = meta::DataKey { wrapped: bytes.into(), ..wrapped.clone() };
            assert_eq!(key.unwrap(&damaged).unwrap_err().code, Code::NoKey, "byte {at}");
        }
        for length in [0, 12, 44, 59] {
            let short = meta::DataKey { wrapped: wrapped.wrapped.slice(..length), ..wrapped.clone() };
            assert_eq!(key.unwrap(&short).unwrap_err().code, Code::NoKey);
        }
        assert_ne!(key.wrap(&DataKey::random().unwrap()).unwrap().wrapped[..12], wrapped.wrapped[..12]);
    }

    #[test]
    fn a_passphrase_is_stretched_with_a_salt_of_its_own() {
        let create = || MasterKey::create("p", KeySource::Passphrase, b"correct horse\n", 1).unwrap().0;
        let (one, two) = (create(), create());
        assert_ne!((&one.salt, &one.check), (&two.salt, &two.check));
        assert_eq!((one.rounds, one.salt.len()), (600_000, 32));
        MasterKey::open(&one, b"correct horse").expect("a line's end is not part of it");
        assert_eq!(MasterKey::open(&one, b"wrong horse").unwrap_err().code, Code::NoKey);
        assert_eq!(MasterKey::open(&one, b"\n").unwrap_err().code, Code::NoKey);
    }

    #[test]
    fn what_is_derived_is_what_the_standards_say() {
        // RFC 5869, test case 3.
        let okm = derive(&[0x0b; 22], b"", &[]).unwrap();
        assert_eq!(okm[..4], [0x8d, 0xa4, 0xe7, 0x75]);
    }
}
