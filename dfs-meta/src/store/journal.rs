//! A write-ahead log before the embedded engine: one file of fixed size, written in full once, so that making a batch
//! durable is one write and one fdatasync(2) that touches no other metadata of the filesystem.
//!
//! ```text
//! record   offset  bytes
//!               0      4   magic "dfJ1"; another one is refused
//!               4      4   CRC32C of all that follows
//!               8      8   generation: chosen anew each time the file is begun again
//!              16      4   index of the record in its generation
//!              20      4   length of the payload
//!              24      n   payload: for each change  key length (4), key, 1 + value length or 0 (4), value
//! ```
//!
//! Numbers are little-endian. Replay takes the records of the first one's generation in order and ends at the first
//! that is not whole: what follows was never acknowledged. It never guesses: what is left of older generations has
//! another number.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Batch;

const MAGIC: [u8; 4] = *b"dfJ1";
const HEADER: usize = 24;

/// The log.
pub(super) struct Journal {
    file: File,
    capacity: usize,
    generation: u64,
    index: u32,
    end: usize,
    /// The record that is being made; kept for its memory.
    record: Vec<u8>,
}

impl Journal {
    /// Opens the log in `directory`, or makes one of `capacity` bytes; `replay` gets every batch that is in it, oldest
    /// first. The caller makes them durable elsewhere and then calls [`Journal::restart`].
    pub(super) fn open<E: From<io::Error>>(
        directory: &Path,
        capacity: usize,
        mut replay: impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<Self, E> {
        let path = directory.join("journal");
        if !path.try_exists()? {
            create(directory, &path, capacity)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut bytes = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let known = bytes.len() >= HEADER && (bytes[..4] == MAGIC || bytes[..4] == [0; 4]);
        if !known {
            let message = format!("{} is of a version that this program does not know", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message).into());
        }
        let mut rest = &bytes[..];
        let mut expected = None;
        while let Some((generation, index, payload, after)) = split_record(rest) {
            if (generation, index) != expected.unwrap_or((generation, 0)) {
                break;
            }
            replay(decode(payload)?)?;
            expected = Some((generation, index + 1));
            rest = after;
        }
        let mut journal =
            Self { file, capacity: bytes.len(), generation: 0, index: 0, end: 0, record: Vec::new() };
        journal.restart();
        Ok(journal)
    }

    /// Prepares a batch. Whether there is room for it; when not, the caller has to make everything durable elsewhere
    /// and call [`Journal::restart`], after which there is room unless the batch is longer than the whole log.
    pub(super) fn prepare(&mut self, batch: &Batch) -> bool {
        self.record.clear();
        self.record.resize(HEADER, 0);
        for (key, value) in batch {
            self.record.extend_from_slice(&(key.len() as u32).to_le_bytes());
            self.record.extend_from_slice(key);
            let length = value.as_ref().map_or(0, |value| 1 + value.len() as u32);
            self.record.extend_from_slice(&length.to_le_bytes());
            self.record.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        self.end + self.record.len() <= self.capacity
    }

    /// Makes the prepared batch durable.
    pub(super) fn append(&mut self) -> io::Result<()> {
        let length = (self.record.len() - HEADER) as u32;
        self.record[..4].copy_from_slice(&MAGIC);
        self.record[8..16].copy_from_slice(&self.generation.to_le_bytes());
        self.record[16..20].copy_from_slice(&self.index.to_le_bytes());
        self.record[20..24].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c(&self.record[8..]);
        self.record[4..8].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&self.record, self.end as u64)?;
        self.file.sync_data()?;
        self.end += self.record.len();
        self.index += 1;
        Ok(())
    }

    /// Begins again from the start: everything in the log is durable elsewhere.
    pub(super) fn restart(&mut self) {
        self.generation = rand::random();
        self.index = 0;
        self.end = 0;
    }
}

/// Makes an empty log: zeros that are on the disk, so that writing over them later changes nothing but them.
fn create(directory: &Path, path: &Path, capacity: usize) -> io::Result<()> {
    let temporary = directory.join("journal.new");
    let mut file = File::create(&temporary)?;
    let zeros = vec![0; 1 << 20];
    let mut left = capacity;
    while left > 0 {
        let piece = left.min(zeros.len());
        file.write_all(&zeros[..piece])?;
        left -= piece;
    }
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// The record at the start of `bytes` as (generation, index, payload, what follows), when it is whole.
fn split_record(bytes: &[u8]) -> Option<(u64, u32, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if header[..4] != MAGIC {
        return None;
    }
    let length = number(20) as usize;
    let payload = rest.get(..length)?;
    if crc32c::crc32c(&bytes[8..HEADER + length]) != number(4) {
        return None;
    }
    let generation = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    Some((generation, number(16), payload, &rest[length..]))
}

/// The batch in a payload whose checksum was right.
fn decode(mut payload: &[u8]) -> io::Result<Batch> {
    let mut batch = Batch::new();
    while !payload.is_empty() {
        let key_length = take_number(&mut payload)?;
        let key = take(&mut payload, key_length)?.to_vec();
        let value = match take_number(&mut payload)? {
            0 => None,
            length => Some(take(&mut payload, length - 1)?.to_vec()),
        };
        batch.insert(key, value);
    }
    Ok(batch)
}

fn take<'a>(payload: &mut &'a [u8], length: usize) -> io::Result<&'a [u8]> {
    let bad =
        || io::Error::new(io::ErrorKind::InvalidData, "the journal holds a record that does not add up");
    payload.split_off(..length).ok_or_else(bad)
}

fn take_number(payload: &mut &[u8]) -> io::Result<usize> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(take(payload, 4)?);
    Ok(u32::from_le_bytes(bytes) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 4096;

    fn batch(number: u8) -> Batch {
        Batch::from([
            (vec![number], Some(vec![number; 100])),
            (b"gone".to_vec(), None),
            (b"empty".to_vec(), Some(vec![])),
        ])
    }

    fn open(directory: &Path) -> io::Result<(Journal, Vec<Batch>)> {
        let mut found = Vec::new();
        let journal = Journal::open(directory, CAPACITY, |batch| {
            found.push(batch);
            Ok::<_, io::Error>(())
        })?;
        Ok((journal, found))
    }

    fn append(journal: &mut Journal, number: u8) -> bool {
        let room = journal.prepare(&batch(number));
        if room {
            journal.append().unwrap();
        }
        room
    }

    #[test]
    fn what_was_appended_is_replayed_until_it_begins_again() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, found) = open(directory.path()).unwrap();
        assert!(found.is_empty());
        let fitting = (0..).take_while(|&number| append(&mut journal, number)).count() as u8;
        assert!(fitting > 10);
        // Opening forgets nothing before something is appended again.
        for _ in 0..2 {
            let (_, found) = open(directory.path()).unwrap();
            assert_eq!(found, (0..fitting).map(batch).collect::<Vec<_>>());
        }
        let (mut journal, _) = open(directory.path()).unwrap();
        assert!(append(&mut journal, 200));
        let (_, found) = open(directory.path()).unwrap();
        assert_eq!(
            found,
            [batch(200)],
            "what is left of the generation before is not taken for the next record"
        );
    }

    #[test]
    fn a_record_that_is_not_whole_ends_the_replay() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(directory.path()).unwrap();
        for number in 0..5 {
            append(&mut journal, number);
        }
        let length = journal.record.len();
        let path = directory.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..length * 5 {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            match open(directory.path()) {
                Ok((_, found)) => assert_eq!(found, (0..(at / length) as u8).map(batch).collect::<Vec<_>>()),
                Err(error) => assert!(at < 4, "only the file's magic is refused: {at} {error}"),
            }
        }
    }

    #[test]
    fn a_batch_longer_than_the_log_has_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(directory.path()).unwrap();
        assert!(!journal.prepare(&Batch::from([(vec![1], Some(vec![0; CAPACITY]))])));
    }
}
