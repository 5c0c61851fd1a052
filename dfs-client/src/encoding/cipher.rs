//! AES-256-GCM of the blocks of one chunk.
//!
//! Each chunk has a key of its own, from the data key and a random salt, and each of its blocks its number for a nonce. So no
//! nonce is used twice with a key: a [`Sealer`] makes its own salt and counts by itself. What is authenticated besides says
//! which block of which content this is and how long both are, so that a block in another's place is refused.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use dfs_proto::encoding::{SALT_LENGTH, TAG_LENGTH};
use dfs_proto::{Code, Failure};

use crate::keys::{DataKey, derive};

const PURPOSE: &[u8] = b"blocks of a chunk";

/// Encrypts the blocks of one chunk, in order.
pub(super) struct Sealer {
    cipher: Cipher,
    next: u32,
}

/// Decrypts blocks of one chunk.
pub(super) struct Cipher {
    key: LessSafeKey,
    salt: [u8; SALT_LENGTH],
    content: u64,
}

/// What a block is, beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its number.
    pub(super) block: u32,
    /// Its bytes before it was compressed.
    pub(super) length: usize,
    /// Its bytes as they are stored.
    pub(super) stored: usize,
}

impl Sealer {
    /// For a chunk with a content of so many bytes.
    pub(super) fn new(data_key: &DataKey, content: u64) -> Result<Self, Failure> {
        let mut salt = [0; SALT_LENGTH];
        rand::fill(&mut salt).map_err(|_| broken())?;
        Ok(Self { cipher: Cipher::new(data_key, salt, content)?, next: 0 })
    }

    /// What [`Cipher::new`] needs.
    pub(super) fn salt(&self) -> [u8; SALT_LENGTH] {
        self.cipher.salt
    }

    /// Encrypts the next block in place; its tag. `length` is the block's before it was compressed.
    pub(super) fn seal(&mut self, length: usize, stored: &mut [u8]) -> Result<[u8; TAG_LENGTH], Failure> {
        let place = Place { block: self.next, length, stored: stored.len() };
        self.next = self.next.checked_add(1).ok_or_else(broken)?;
        let cipher = &self.cipher;
        let tag = cipher
            .key
            .seal_in_place_separate_tag(place.nonce(), Aad::from(cipher.aad(place)), stored)
            .map_err(|_| broken())?;
        tag.as_ref().try_into().map_err(|_| broken())
    }
}

impl Cipher {
    pub(super) fn new(data_key: &DataKey, salt: [u8; SALT_LENGTH], content: u64) -> Result<Self, Failure> {
        let key = derive(data_key.expose(), &salt, &[PURPOSE])?;
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).map_err(|_| broken())?;
        Ok(Self { key: LessSafeKey::new(key), salt, content })
    }

    /// Decrypts a block to `out`, which is as long as it. CORRUPT when it is not what was encrypted there.
    pub(super) fn open(
        &self,
        place: Place,
        stored: &[u8],
        tag: &[u8; TAG_LENGTH],
        out: &mut [u8],
    ) -> Result<(), Failure> {
        self.key.open_separate_gather(place.nonce(), Aad::from(self.aad(place)), stored, tag, out).map_err(
            |_| Failure::new(Code::Corrupt, format!("block {} is not what was encrypted", place.block)),
        )
    }

    fn aad(&self, place: Place) -> [u8; SALT_LENGTH + 20] {
        let mut aad = [0; SALT_LENGTH + 20];
        aad[..16].copy_from_slice(&self.salt);
        aad[16..20].copy_from_slice(&place.block.to_le_bytes());
        aad[20..24].copy_from_slice(&(place.length as u32).to_le_bytes());
        aad[24..28].copy_from_slice(&(place.stored as u32).to_le_bytes());
        aad[28..].copy_from_slice(&self.content.to_le_bytes());
        aad
    }
}

impl Place {
    fn nonce(self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.block.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

fn broken() -> Failure {
    Failure::new(Code::InputOutput, "encrypting a block failed")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use aes_gcm::aead::AeadInPlace;
    use aes_gcm::{Aes256Gcm, KeyInit};

    use super::*;

    #[test]
    fn another_implementation_reads_what_was_written() {
        let data_key = DataKey::random().unwrap();
        let mut sealer = Sealer::new(&data_key, 300).unwrap();
        let plain: Vec<u8> = (0..300).map(|at| at as u8).collect();
        let (mut first, mut second) = (plain.clone(), plain.clone());
        sealer.seal(300, &mut first).unwrap();
        let tag = sealer.seal(300, &mut second).unwrap();
        assert_ne!(first, second);
        let key = derive(data_key.expose(), &sealer.salt(), &[PURPOSE]).unwrap();
        let mut nonce = [0; 12];
        nonce[0] = 1;
        let mut aad = sealer.salt().to_vec();
        aad.extend([1, 0, 0, 0, 44, 1, 0, 0, 44, 1, 0, 0, 44, 1, 0, 0, 0, 0, 0, 0]);
        Aes256Gcm::new((&**key).into())
            .decrypt_in_place_detached(&nonce.into(), &aad, &mut second, &tag.into())
            .expect("the same cipher");
        assert_eq!(second, plain);
    }

    #[test]
    fn a_block_is_itself_in_its_own_place_only() {
        let (data_key, other) = (DataKey::random().unwrap(), DataKey::random().unwrap());
        let mut sealer = Sealer::new(&data_key, 1000).unwrap();
        let mut stored = vec![5; 100];
        let tag = sealer.seal(100, &mut stored).unwrap();
        let salt = sealer.salt();
        let place = Place { block: 0, length: 100, stored: 100 };
        let open = |data_key, salt, content, place, stored: &[u8], tag: &[u8; 16]| {
            let mut out = vec![0; stored.len()];
            Cipher::new(data_key, salt, content).unwrap().open(place, stored, tag, &mut out).map(|()| out)
        };
        assert_eq!(open(&data_key, salt, 1000, place, &stored, &tag).unwrap(), [5; 100]);
        let mut another_salt = salt;
        another_salt[3] ^= 1;
        for (what, wrong) in [
            ("key", open(&other, salt, 1000, place, &stored, &tag)),
            ("salt", open(&data_key, another_salt, 1000, place, &stored, &tag)),
            ("content", open(&data_key, salt, 999, place, &stored, &tag)),
            ("block", open(&data_key, salt, 1000, Place { block: 1, ..place }, &stored, &tag)),
            ("length", open(&data_key, salt, 1000, Place { length: 101, ..place }, &stored, &tag)),
            ("stored", open(&data_key, salt, 1000, Place { stored: 99, ..place }, &stored[..99], &tag)),
        ] {
            assert_eq!(wrong.expect_err(what).code, Code::Corrupt, "{what}");
        }
        for bit in 0..116 * 8 {
            let (mut stored, mut tag) = (stored.clone(), tag);
            match bit / 8 {
                byte if byte < 100 => stored[byte] ^= 1 << (bit % 8),
                byte => tag[byte - 100] ^= 1 << (bit % 8),
            }
            assert!(open(&data_key, salt, 1000, place, &stored, &tag).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn no_nonce_is_used_twice_with_a_key() {
        let data_key = DataKey::random().unwrap();
        let mut seen = HashSet::new();
        for _ in 0..2000 {
            let mut sealer = Sealer::new(&data_key, 640).unwrap();
            let key = derive(data_key.expose(), &sealer.salt(), &[PURPOSE]).unwrap().to_vec();
            for _ in 0..10 {
                let nonce = Place { block: sealer.next, length: 64, stored: 64 }.nonce();
                assert!(seen.insert((key.clone(), *nonce.as_ref())), "a nonce came again");
                sealer.seal(64, &mut [0; 64]).unwrap();
            }
        }
        assert_eq!(seen.len(), 20_000);
    }
}
