//! How a shard's bytes are sent to a chunk daemon: the call `Put`, with nothing copied on the way to the connection.
//!
//! The generated client would copy each frame's data into a message of its own. Here a message's head is made, and the data
//! follows it in the pieces in which it lies in memory; to the one who receives both are the same.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

use crate::chunk::chunk_client::ChunkClient;
use crate::chunk::{PutFrame, PutHeader, PutReply};
use crate::limits::MAX_MESSAGE;

/// The number of the field `data` in a `PutFrame`.
const DATA_FIELD: u32 = 2;
/// A message's length and whether it is compressed (never), before each message.
const PREFIX_LENGTH: usize = 5;

/// A [`PutFrame`] whose data lies in several places.
#[derive(Clone, Debug, Default)]
pub struct PutPart {
    /// In a put's first part.
    pub header: Option<PutHeader>,
    /// One behind the other, at most a frame together.
    pub data: Vec<Bytes>,
    /// One for each block of the data.
    pub block_crc32c: Vec<u32>,
}

/// Sends a shard and waits for the answer; sets no deadline.
pub async fn put(
    channel: Channel,
    parts: impl Stream<Item = PutPart> + Send + Unpin + 'static,
) -> Result<PutReply, Status> {
    let body = Body::new(Messages { parts, pieces: VecDeque::new() });
    let connection = Sending { channel, body: Some(body) };
    let mut client = ChunkClient::new(connection).max_decoding_message_size(MAX_MESSAGE);
    // What is sent is not what the generated client would send.
    Ok(client.put(tokio_stream::empty()).await?.into_inner())
}

impl PutPart {
    /// The message but for its data, which is to follow.
    fn head(self) -> (Bytes, Vec<Bytes>) {
        let Self { header, data, block_crc32c } = self;
        let length: usize = data.iter().map(Bytes::len).sum();
        let head = PutFrame { header, data: Bytes::new(), block_crc32c };
        let data_head = key_len(DATA_FIELD) + encoded_len_varint(length as u64);
        let message = head.encoded_len() + if length > 0 { data_head + length } else { 0 };
        let mut bytes = BytesMut::with_capacity(PREFIX_LENGTH + head.encoded_len() + data_head);
        bytes.put_u8(0);
        bytes.put_u32(message as u32);
        head.encode_raw(&mut bytes);
        if length > 0 {
            encode_key(DATA_FIELD, WireType::LengthDelimited, &mut bytes);
            encode_varint(length as u64, &mut bytes);
        }
        (bytes.freeze(), data)
    }
}

/// The messages of a put, piece by piece.
struct Messages<S> {
    parts: S,
    /// Of the message that is being sent.
    pieces: VecDeque<Bytes>,
}

impl<S: Stream<Item = PutPart> + Unpin> http_body::Body for Messages<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if self.pieces.is_empty() {
            let Some(part) = ready!(Pin::new(&mut self.parts).poll_next(context)) else {
                return Poll::Ready(None);
            };
            let (head, data) = part.head();
            self.pieces.push_back(head);
            self.pieces.extend(data);
        }
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(http_body::Frame::data(piece))))
    }
}

/// A connection for one call, which sends `body` whatever it is told to send.
struct Sending {
    channel: Channel,
    body: Option<Body>,
}

impl Service<http::Request<Body>> for Sending {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let body = self.body.take().unwrap_or_default();
        self.channel.call(request.map(|_| body))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Buf;
    use http_body::Body;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What goes over the wire.
    fn sent(parts: Vec<PutPart>) -> Vec<Bytes> {
        let mut body = Messages { parts: tokio_stream::iter(parts), pieces: VecDeque::new() };
        let mut pieces = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(piece))) = Pin::new(&mut body).poll_frame(&mut context) {
            pieces.push(piece.into_data().expect("data, and nothing else"));
        }
        pieces
    }

    fn part() -> impl Strategy<Value = PutPart> {
        let header = proptest::option::of((any::<u64>(), any::<u32>(), ".{0,20}"));
        let data = vec(vec(any::<u8>(), 1..300), 0..4);
        (header, data, vec(any::<u32>(), 0..20)).prop_map(|(header, data, block_crc32c)| PutPart {
            header: header.map(|(chunk, index, redundancy)| PutHeader {
                chunk,
                index,
                redundancy,
                ..PutHeader::default()
            }),
            data: data.into_iter().map(Bytes::from).collect(),
            block_crc32c,
        })
    }

    proptest! {
        #[test]
        fn the_one_who_receives_sees_put_frames(parts in vec(part(), 0..6)) {
            let pieces = sent(parts.clone());
            // The data itself is sent, not a copy.
            for data in parts.iter().flat_map(|part| &part.data) {
                prop_assert!(pieces.iter().any(|piece| piece.as_ptr() == data.as_ptr() && piece == data));
            }
            let mut wire = Bytes::from(pieces.concat());
            for part in parts {
                prop_assert_eq!(wire.get_u8(), 0, "not compressed");
                let length = wire.get_u32() as usize;
                let frame = PutFrame::decode(wire.split_to(length)).unwrap();
                prop_assert_eq!(frame.header, part.header);
                prop_assert_eq!(frame.data, part.data.concat());
                prop_assert_eq!(frame.block_crc32c, part.block_crc32c);
            }
            prop_assert!(wire.is_empty());
        }
    }
}
