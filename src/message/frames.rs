//! The body: frames, sealed and opened one by one, so that a stream needs no more than one in
//! memory.

use crate::crypto::aead;
use crate::crypto::aead::NONCE;
use crate::crypto::aead::TAG;
use crate::crypto::aead::Tag;

use super::Flaw;
use super::keys::MESSAGE_ID;
use super::reader::Reader;

/// How a body is cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Framing {
    /// Into frames of this length and a final one that may be shorter.
    Framed(FrameLength),
    /// Not at all. Read, never written.
    Single,
}

/// `F`: the bytes of content in a regular frame, 1 to 2^31 − 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLength(u32);

impl FrameLength {
    /// What we write, as the AWS Encryption SDKs do.
    pub(super) const DEFAULT: Self = Self(4096);

    /// `None` outside the bounds.
    pub(super) fn new(bytes: u32) -> Option<Self> {
        (1..=MAX_FRAME_LENGTH)
            .contains(&bytes)
            .then_some(Self(bytes))
    }

    pub(super) fn to_be_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    pub(super) fn bytes(self) -> usize {
        usize::try_from(self.0).expect("a slice can be 2^31 bytes long")
    }

    /// The number of regular frames in front of the final one: a full last frame is the final one,
    /// and an empty plaintext is one empty final frame.
    pub(super) fn regular_frames(self, plaintext: usize) -> usize {
        plaintext.saturating_sub(1) / self.bytes()
    }

    /// The length of so many sealed regular frames, in bytes.
    pub(super) fn sealed_regular(self, frames: usize) -> usize {
        frames * (self.bytes() + REGULAR_OVERHEAD)
    }
}

/// The length of a sealed body, in bytes.
pub(super) fn sealed_len(plaintext: usize, frame_length: FrameLength) -> usize {
    plaintext + FINAL_OVERHEAD + frame_length.regular_frames(plaintext) * REGULAR_OVERHEAD
}

/// What the frames of one message share.
pub(super) struct Body<'a> {
    key: &'a aead::Key,
    message_id: &'a [u8; MESSAGE_ID],
}

impl<'a> Body<'a> {
    pub(super) fn new(key: &'a aead::Key, message_id: &'a [u8; MESSAGE_ID]) -> Self {
        Self { key, message_id }
    }

    /// Appends all of `plaintext`, sealed.
    ///
    /// # Panics
    /// When it takes more than 2^32 − 1 frames.
    pub(super) fn seal(&self, frame_length: FrameLength, plaintext: &[u8], out: &mut Vec<u8>) {
        let regular = frame_length.regular_frames(plaintext.len());
        let last = u32::try_from(regular + 1).expect("a body has at most 2^32 - 1 frames");
        let (full, rest) = plaintext.split_at(regular * frame_length.bytes());
        for (sequence, content) in (1..last).zip(full.chunks_exact(frame_length.bytes())) {
            self.seal_regular(sequence, content, out);
        }
        self.seal_final(last, rest, out);
    }

    /// Appends `u32 sequence ‖ IV ‖ C ‖ T`; `content` has exactly the frame length.
    pub(super) fn seal_regular(&self, sequence: u32, content: &[u8], out: &mut Vec<u8>) {
        let nonce = nonce(sequence);
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&nonce);
        self.seal_content(Kind::Regular, sequence, &nonce, content, out);
    }

    /// Appends `FFFFFFFF ‖ u32 sequence ‖ IV ‖ u32 n ‖ C ‖ T`; `content` has at most the frame
    /// length.
    pub(super) fn seal_final(&self, sequence: u32, content: &[u8], out: &mut Vec<u8>) {
        let nonce = nonce(sequence);
        let length = u32::try_from(content.len()).expect("content fits in a frame");
        out.extend_from_slice(&FINAL.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&length.to_be_bytes());
        self.seal_content(Kind::Final, sequence, &nonce, content, out);
    }

    fn seal_content(
        &self,
        kind: Kind,
        sequence: u32,
        nonce: &[u8; NONCE],
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        out.extend_from_slice(content);
        let (_, buffer) = out.split_at_mut(start);
        let additional = Additional::new(self.message_id, kind, sequence, buffer.len());
        let tag = self.key.seal_in_place(nonce, additional.as_bytes(), buffer);
        out.extend_from_slice(&tag.0);
    }

    /// Appends the plaintext of `frame`, or zeros when it does not verify.
    pub(super) fn open(&self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Flaw> {
        let start = out.len();
        out.extend_from_slice(frame.content);
        let (_, buffer) = out.split_at_mut(start);
        let additional = Additional::new(
            self.message_id,
            frame.kind,
            frame.sequence,
            frame.content.len(),
        );
        self.key
            .open_in_place(frame.nonce, additional.as_bytes(), buffer, &frame.tag)
            .map_err(|_| Flaw::FrameMismatch(frame.sequence))
    }
}

/// A received frame in its right place; its content is not verified yet.
pub(super) struct Frame<'a> {
    kind: Kind,
    sequence: u32,
    /// Other producers may choose it freely, so the received one counts.
    nonce: &'a [u8; NONCE],
    content: &'a [u8],
    tag: Tag,
}

impl<'a> Frame<'a> {
    /// Reads the frame that must have the number `expected` and content of at most `longest`
    /// bytes.
    fn read(
        reader: &mut Reader<'a>,
        expected: u32,
        frame_length: FrameLength,
        longest: u64,
    ) -> Result<Self, Flaw> {
        let first = reader.u32()?;
        let (kind, sequence) = match first {
            FINAL => (Kind::Final, reader.u32()?),
            sequence => (Kind::Regular, sequence),
        };
        if sequence != expected {
            return Err(Flaw::FrameSequence {
                expected,
                found: sequence,
            });
        }
        let nonce = reader.array()?;
        let length = match kind {
            Kind::Final => read_final_length(reader, frame_length)?,
            Kind::Regular | Kind::Single => frame_length.0,
        };
        let length = bounded(length.into(), longest)?;
        Ok(Self {
            kind,
            sequence,
            nonce,
            content: reader.take(length)?,
            tag: Tag(*reader.array()?),
        })
    }

    /// Reads a body that is not cut into frames: `IV ‖ u64 length ‖ C ‖ T`.
    fn read_single(reader: &mut Reader<'a>, longest: u64) -> Result<Self, Flaw> {
        let nonce = reader.array()?;
        let length = bounded(reader.u64()?, longest)?;
        Ok(Self {
            kind: Kind::Single,
            sequence: 1,
            nonce,
            content: reader.take(length)?,
            tag: Tag(*reader.array()?),
        })
    }
}

fn read_final_length(reader: &mut Reader<'_>, frame_length: FrameLength) -> Result<u32, Flaw> {
    let length = reader.u32()?;
    if length > frame_length.0 {
        return Err(Flaw::FinalFrame {
            length,
            limit: frame_length.0,
        });
    }
    Ok(length)
}

/// The length of content that is to be taken.
fn bounded(length: u64, longest: u64) -> Result<usize, Flaw> {
    if length > longest {
        return Err(Flaw::LongFrame {
            length,
            limit: longest,
        });
    }
    // What does not fit into memory is not there.
    usize::try_from(length).map_err(|_| Flaw::Truncated)
}

/// Where in a body the next frame is, and what may stand there.
pub(super) struct Place {
    framing: Framing,
    /// Longest content, in bytes.
    longest: u64,
    /// The number of the next frame; `None` after the last one.
    next: Option<u32>,
}

impl Place {
    /// In front of the first frame.
    pub(super) fn first(framing: Framing, longest: u64) -> Self {
        Self {
            framing,
            longest,
            next: Some(1),
        }
    }

    /// Whether the last frame has been read.
    pub(super) fn is_behind(&self) -> bool {
        self.next.is_none()
    }

    /// Reads the frame that belongs here. With a flaw, the place is still the same.
    pub(super) fn read<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Frame<'a>, Flaw> {
        let Some(expected) = self.next else {
            return Err(Flaw::TrailingBytes(reader.rest().len()));
        };
        let frame = match self.framing {
            Framing::Framed(length) => Frame::read(reader, expected, length, self.longest),
            Framing::Single => Frame::read_single(reader, self.longest),
        }?;
        self.next = match frame.kind {
            Kind::Regular => {
                let next = expected.checked_add(1);
                Some(next.expect("the greatest number marks the final frame"))
            }
            Kind::Final | Kind::Single => None,
        };
        Ok(frame)
    }
}

/// The frames of a received body in order, then a flaw if anything follows the last one.
pub(super) struct Frames<'a> {
    reader: Reader<'a>,
    place: Place,
    flawed: bool,
}

impl<'a> Frames<'a> {
    pub(super) fn new(body: &'a [u8], framing: Framing) -> Self {
        Self {
            reader: Reader::new(body),
            // Nothing is longer than the body, which is in memory already.
            place: Place::first(framing, u64::MAX),
            flawed: false,
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        let over = self.place.is_behind() && self.reader.rest().is_empty();
        if over || self.flawed {
            return None;
        }
        let frame = self.place.read(&mut self.reader);
        self.flawed = frame.is_err();
        Some(frame)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Final,
    Regular,
    Single,
}

impl Kind {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Final => b"AWSKMSEncryptionClient Final Frame",
            Self::Regular => b"AWSKMSEncryptionClient Frame",
            Self::Single => b"AWSKMSEncryptionClient Single Block",
        }
    }
}

/// `message id ‖ label ‖ u32 sequence ‖ u64 length of the content` (message format, section 3).
struct Additional {
    bytes: [u8; MAX_ADDITIONAL],
    length: usize,
}

impl Additional {
    fn new(message_id: &[u8; MESSAGE_ID], kind: Kind, sequence: u32, content: usize) -> Self {
        let content = u64::try_from(content).expect("lengths have at most 64 bits");
        let parts: [&[u8]; 4] = [
            message_id,
            kind.label(),
            &sequence.to_be_bytes(),
            &content.to_be_bytes(),
        ];
        let mut bytes = [0; MAX_ADDITIONAL];
        let mut rest = bytes.as_mut_slice();
        for part in parts {
            let (field, behind) = rest.split_at_mut(part.len());
            field.copy_from_slice(part);
            rest = behind;
        }
        let length = MAX_ADDITIONAL - rest.len();
        Self { bytes, length }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.split_at(self.length).0
    }
}

/// `00*8 ‖ u32 sequence`.
fn nonce(sequence: u32) -> [u8; NONCE] {
    let [a, b, c, d] = sequence.to_be_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// Longest frame that we read: what other readers can count in a signed integer.
const MAX_FRAME_LENGTH: u32 = u32::MAX >> 1;
/// Stands where a regular frame has its number.
const FINAL: u32 = u32::MAX;
/// Number, nonce and tag.
const REGULAR_OVERHEAD: usize = 4 + NONCE + TAG;
/// Marker, number, nonce, length and tag.
const FINAL_OVERHEAD: usize = 4 + 4 + NONCE + 4 + TAG;
/// With the longest label, that of a single block.
const MAX_ADDITIONAL: usize = MESSAGE_ID + 35 + 4 + 8;
