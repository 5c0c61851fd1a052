//! Compression of single blocks. Pure.

use dfs_proto::meta::Compression;
use dfs_proto::{Code, Failure};

/// zstd's level: its default, about 350 MB/s a core.
const ZSTD_LEVEL: i32 = 3;
/// What is looked at of a block to see whether compressing it pays: so much of its begin, middle and end.
const SAMPLE: usize = 2048;
/// It pays when it saves this part of what it is.
const WORTHWHILE: usize = 16;

/// Compresses blocks one after the other.
pub(super) enum Compressor {
    Lz4,
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl Compressor {
    /// `None`: blocks stay as they are.
    pub(super) fn new(compression: Compression) -> Result<Option<Self>, Failure> {
        Ok(match compression {
            Compression::Uncompressed => None,
            Compression::Lz4 => Some(Self::Lz4),
            Compression::Zstd => {
                let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(broken)?;
                Some(Self::Zstd(Box::new(compressor)))
            }
        })
    }

    /// The most that a block of `length` bytes may take in the buffer that it is compressed into.
    pub(super) fn bound(&self, length: usize) -> usize {
        match self {
            Self::Lz4 => lz4_flex::block::get_maximum_output_size(length),
            Self::Zstd(_) => zstd::zstd_safe::compress_bound(length),
        }
    }

    /// Compresses `block` to the begin of `out`, which is as long as [`Self::bound`] says; the length, if it pays.
    pub(super) fn compress(&mut self, block: &[u8], out: &mut [u8]) -> Option<usize> {
        if !is_promising(block) {
            return None;
        }
        let length = match self {
            Self::Lz4 => lz4_flex::block::compress_into(block, out).ok()?,
            Self::Zstd(compressor) => compressor.compress_to_buffer(block, out).ok()?,
        };
        pays(block.len(), length).then_some(length)
    }
}

fn pays(length: usize, compressed: usize) -> bool {
    compressed > 0 && compressed <= length - length.div_ceil(WORTHWHILE)
}

/// Whether a sample of the block can be made shorter.
fn is_promising(block: &[u8]) -> bool {
    if block.len() <= 4 * SAMPLE {
        return true;
    }
    let mut out = [0; SAMPLE + SAMPLE / 8];
    [0, (block.len() - SAMPLE) / 2, block.len() - SAMPLE].into_iter().any(|start| {
        let sample = &block[start..start + SAMPLE];
        lz4_flex::block::compress_into(sample, &mut out).is_ok_and(|length| pays(SAMPLE, length))
            || has_few_values(sample)
    })
}

/// Whether some bytes are much more frequent than others, which zstd uses and lz4 does not.
fn has_few_values(sample: &[u8]) -> bool {
    let mut counts = [0_u32; 256];
    sample.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    // Of bytes that are all as frequent, the sum of squares is about length² / 256 + length.
    let squares: u32 = counts.iter().map(|count| count * count).sum();
    let length = sample.len() as u32;
    squares > 2 * (length * length / 256 + length)
}

/// Decompresses a block into `out`, which is as long as the block is. CORRUPT when it is not what it says.
pub(super) fn decompress(compression: Compression, stored: &[u8], out: &mut [u8]) -> Result<(), Failure> {
    let length = match compression {
        Compression::Lz4 => lz4_flex::block::decompress_into(stored, out).ok(),
        Compression::Zstd => zstd::bulk::decompress_to_buffer(stored, out).ok(),
        Compression::Uncompressed => None,
    };
    match length == Some(out.len()) {
        true => Ok(()),
        false => Err(Failure::new(Code::Corrupt, "a block cannot be decompressed")),
    }
}

fn broken(error: std::io::Error) -> Failure {
    Failure::new(Code::InputOutput, format!("compression failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|_| rand::random()).collect()
    }

    #[test]
    fn what_pays_is_compressed_and_what_does_not_is_left() {
        let text = "the same words again and again, ".repeat(2048);
        // Few values in no order: only zstd sees that.
        let digits: Vec<u8> = noise(65536).iter().map(|byte| byte % 64).collect();
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut compressor = Compressor::new(compression).unwrap().unwrap();
            let mut out = vec![0; compressor.bound(65536)];
            let length = compressor.compress(text.as_bytes(), &mut out).expect("text pays");
            assert!(length < 3000, "{length}");
            let mut back = vec![0; text.len()];
            decompress(compression, &out[..length], &mut back).unwrap();
            assert_eq!(back, text.as_bytes());
            for wrong in [&out[..length - 1], &noise(100)] {
                assert_eq!(decompress(compression, wrong, &mut back).unwrap_err().code, Code::Corrupt);
            }
            assert!(decompress(compression, &out[..length], &mut back[1..]).is_err());
            for length in [1, 10, 1000, 65536] {
                assert_eq!(compressor.compress(&noise(length), &mut out), None, "noise of {length} bytes");
            }
            let pays = compressor.compress(&digits, &mut out).is_some();
            assert_eq!(pays, compression == Compression::Zstd);
        }
    }
}
