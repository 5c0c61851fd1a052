//! Lays the dirty runs of one or of many files out in one chunk, one behind the other. Pure.

use bytes::Bytes;
use dfs_proto::meta::Extent;

use super::segments::Frozen;

/// How a layer lies in a chunk: its extents with file offsets as they were when it was cut, and no chunk id yet.
pub(super) type Placement = Vec<Extent>;

/// The pieces of the chunk in order, and for each layer where it lies.
pub(super) fn pack<'a>(layers: impl Iterator<Item = &'a Frozen>) -> (Vec<Bytes>, Vec<Placement>) {
    let (mut pieces, mut placements) = (Vec::new(), Vec::new());
    let mut chunk_offset = 0;
    for layer in layers {
        let mut placement: Placement = Vec::with_capacity(layer.extents());
        for (offset, run) in layer.runs() {
            let next = Extent { offset: *offset, length: run.len() as u64, chunk: 0, chunk_offset };
            chunk_offset += next.length;
            pieces.push(run.clone());
            match placement.last_mut() {
                Some(last) if last.continues_into(&next) => last.length += next.length,
                _ => placement.push(next),
            }
        }
        placements.push(placement);
    }
    (pieces, placements)
}

#[cfg(test)]
mod tests {
    use super::super::segments::{MAX_RUN, Segments};
    use super::*;

    #[test]
    fn runs_that_touch_become_one_extent_and_files_follow_each_other() {
        let mut a = Segments::default();
        a.write(100, &vec![1; 2 * MAX_RUN + 5]);
        a.write(10 * MAX_RUN as u64, &[2; 10]);
        let mut b = Segments::default();
        b.write(0, &[3; 7]);
        let (a, b) = (a.freeze(), b.freeze());
        assert_eq!((a.extents(), b.extents()), (2, 1));
        let (pieces, placements) = pack([&a, &b].into_iter());
        let long = 2 * MAX_RUN as u64 + 5;
        let extent = |offset, length, chunk_offset| Extent { offset, length, chunk: 0, chunk_offset };
        assert_eq!(
            placements,
            [
                vec![extent(100, long, 0), extent(10 * MAX_RUN as u64, 10, long)],
                vec![extent(0, 7, long + 10)]
            ]
        );
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>() as u64, long + 17);
    }
}
