//! A write-ahead log before the tree: one file of fixed size, written in full once, so that making a batch durable is one
//! write and one fdatasync(2) that touches no other metadata of the filesystem. While one half of it takes records, what
//! the other half has is applied to the tree.
//!
//! ```text
//! record   offset  bytes
//!               0      4   magic "dfJ2"; another one is refused
//!               4      4   CRC32C of all that follows
//!               8      8   generation: each time a half is begun again; a random number, and above it how often
//!              16      4   index of the record in its generation
//!              20      4   length of the payload
//!              24      n   payload: for each change  key length (4), key, 1 + value length or 0 (4), value
//! ```
//!
//! Numbers are little-endian. Replay takes, of the half that was begun first and then of the other, the records of the
//! first one's generation in order, and ends at the first that is not whole: what follows was never acknowledged. It never
//! guesses: what is left of older generations has another number, which nobody could know beforehand.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::store::Batch;

const MAGIC: [u8; 4] = *b"dfJ2";
const HEADER: usize = 24;

/// The log.
pub(super) struct Journal {
    file: File,
    /// Of each half.
    capacity: usize,
    /// Which half takes records.
    active: usize,
    generation: Generation,
    index: u32,
    /// Where the next record goes in the half.
    end: usize,
    /// The record that is being made; kept for its memory.
    record: Vec<u8>,
}

/// How often a half was begun, and a random number. They are ordered, and none appears twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Generation {
    count: u32,
    mark: u32,
}

impl Generation {
    fn next(self) -> Self {
        Self { count: self.count.wrapping_add(1), mark: rand::random() }
    }
}

/// One half as it was found.
struct Half {
    /// `None`: there is no record in it.
    generation: Option<Generation>,
    batches: Vec<Batch>,
}

impl Journal {
    /// Opens the log in `directory`, or makes one of `capacity` bytes; `replay` gets every batch that is in it, oldest
    /// first. The caller makes them durable elsewhere before anything is appended.
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
        let capacity = file.metadata()?.len() as usize / 2;
        let mut halves = Vec::with_capacity(2);
        for which in 0..2 {
            let mut bytes = vec![0; capacity];
            file.read_exact_at(&mut bytes, (which * capacity) as u64)?;
            halves.push(
                read_half(&bytes)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
            );
        }
        // The one that was begun first, or never, is the next to be begun; so that what both have always follows on one another.
        let active = usize::from(halves[0].generation > halves[1].generation);
        let newest = halves[1 - active].generation.unwrap_or_default();
        if let Some(oldest) = halves[active].generation
            && oldest.count.wrapping_add(1) != newest.count
        {
            let what = format!("{}: its halves don't follow on one another", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
        }
        let newer = halves.swap_remove(1 - active);
        for batch in halves.into_iter().flat_map(|half| half.batches).chain(newer.batches) {
            replay(batch)?;
        }
        let generation = newest.next();
        Ok(Self { file, capacity, active, generation, index: 0, end: 0, record: Vec::new() })
    }

    /// Prepares a batch. Whether the active half has room for it; when not, the caller has to call [`Journal::turn`], after
    /// which there is room unless the batch is longer than a half.
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
        self.record[8..12].copy_from_slice(&self.generation.mark.to_le_bytes());
        self.record[12..16].copy_from_slice(&self.generation.count.to_le_bytes());
        self.record[16..20].copy_from_slice(&self.index.to_le_bytes());
        self.record[20..24].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c(&self.record[8..]);
        self.record[4..8].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&self.record, (self.active * self.capacity + self.end) as u64)?;
        self.file.sync_data()?;
        self.end += self.record.len();
        self.index += 1;
        Ok(())
    }

    /// Goes on in the other half, of which everything is durable elsewhere.
    pub(super) fn turn(&mut self) {
        self.active = 1 - self.active;
        self.generation = self.generation.next();
        self.index = 0;
        self.end = 0;
    }
}

/// The batches in a half.
fn read_half(bytes: &[u8]) -> io::Result<Half> {
    let known = bytes.len() >= HEADER && (bytes[..4] == MAGIC || bytes[..4] == [0; 4]);
    if !known {
        let message = "it is of a version that this program does not know";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut half = Half { generation: None, batches: Vec::new() };
    let mut rest = bytes;
    while let Some((generation, index, payload, after)) = split_record(rest) {
        if generation != *half.generation.get_or_insert(generation) || index as usize != half.batches.len() {
            break;
        }
        half.batches.push(decode(payload)?);
        rest = after;
    }
    if half.batches.is_empty() {
        half.generation = None;
    }
    Ok(half)
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
fn split_record(bytes: &[u8]) -> Option<(Generation, u32, &[u8], &[u8])> {
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
    let generation = Generation { mark: number(8), count: number(12) };
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

    const CAPACITY: usize = 8192;

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

    /// As many batches as fit into one half, from `first` on.
    fn fill(journal: &mut Journal, first: u8) -> u8 {
        (first..).find(|&number| !append(journal, number)).unwrap()
    }

    #[test]
    fn what_both_halves_have_is_replayed_in_order_until_it_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, found) = open(directory.path()).unwrap();
        assert!(found.is_empty());
        let second = fill(&mut journal, 0);
        assert!(second > 10);
        let mut starts = vec![0, second];
        for round in 0..5 {
            journal.turn();
            let (first, last) = (starts[round], starts[round + 1]);
            // The half before it was not begun again yet.
            let (_, found) = open(directory.path()).unwrap();
            assert_eq!(
                found,
                (if round == 0 { 0 } else { starts[round - 1] }..last).map(batch).collect::<Vec<_>>()
            );
            assert!(append(&mut journal, last));
            // Opening forgets nothing before something is appended again.
            for _ in 0..2 {
                let (_, found) = open(directory.path()).unwrap();
                assert_eq!(found, (first..=last).map(batch).collect::<Vec<_>>(), "round {round}");
            }
            starts.push(fill(&mut journal, last + 1));
        }
    }

    #[test]
    fn what_comes_after_a_replay_takes_the_place_of_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(directory.path()).unwrap();
        assert!(append(&mut journal, 1));
        for number in 2..10 {
            let (mut journal, found) = open(directory.path()).unwrap();
            assert_eq!(
                found,
                (if number == 2 { 1 } else { number - 2 }..number).map(batch).collect::<Vec<_>>()
            );
            assert!(append(&mut journal, number));
        }
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
    fn halves_that_do_not_belong_together_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(directory.path()).unwrap();
        append(&mut journal, 0);
        journal.turn();
        journal.turn();
        journal.turn();
        append(&mut journal, 1);
        assert_eq!(open(directory.path()).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_batch_longer_than_the_log_has_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(directory.path()).unwrap();
        assert!(!journal.prepare(&Batch::from([(vec![1], Some(vec![0; CAPACITY]))])));
    }
}
