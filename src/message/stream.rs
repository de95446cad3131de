//! Messages of any length in the memory of a frame: sealed as plaintext comes in, opened as
//! ciphertext does.
//!
//! To seal, [`Sealer`] gives the header, then frame after frame. To open, [`Head`] collects the
//! header; [`Message::unseal`] proves it under its data key and gives the [`Opener`] of the
//! frames.

use std::mem;

use crate::crypto::Plaintext;
use crate::crypto::Secret;
use crate::crypto::aead;
use crate::crypto::random;

use super::Envelope;
use super::Flaw;
use super::Message;
use super::frames::Body;
use super::frames::FrameLength;
use super::frames::Place;
use super::header;
use super::header::Header;
use super::keys::DATA_KEY;
use super::keys::Keys;
use super::keys::MESSAGE_ID;
use super::reader::Reader;

/// Seals one message piece by piece, to the bytes that [`super::seal`] makes of the whole.
pub struct Sealer {
    content: aead::Key,
    message_id: [u8; MESSAGE_ID],
    frame_length: FrameLength,
    /// The number of the next frame.
    next: u32,
    /// The plaintext of the next frame so far. A full frame stays here until another byte comes:
    /// if none does, it is the final one.
    held: Plaintext,
}

impl Sealer {
    /// Begins a message as [`super::seal`] does, and returns its header.
    ///
    /// # Errors
    /// [`random::Error`] when there is no fresh message id to be had.
    pub fn new(
        data_key: &Secret<DATA_KEY>,
        envelope: &Envelope,
        associated_data: &[u8],
    ) -> Result<(Self, Vec<u8>), random::Error> {
        let mut message_id = [0; MESSAGE_ID];
        random::fill(&mut message_id)?;
        let length = FrameLength::DEFAULT;
        Ok(Self::with(
            data_key,
            envelope,
            message_id,
            length,
            associated_data,
        ))
    }

    /// [`Sealer::new`] without randomness: a (data key, message id) pair must seal once at most.
    pub(super) fn with(
        data_key: &Secret<DATA_KEY>,
        envelope: &Envelope,
        message_id: [u8; MESSAGE_ID],
        frame_length: FrameLength,
        associated_data: &[u8],
    ) -> (Self, Vec<u8>) {
        let keys = Keys::derive(data_key, &message_id);
        let mut bytes = Vec::with_capacity(header::sealed_len(envelope));
        header::seal(
            &keys,
            envelope,
            &message_id,
            frame_length,
            associated_data,
            &mut bytes,
        );
        let sealer = Self {
            content: keys.content,
            message_id,
            frame_length,
            next: 1,
            // It never grows, and so leaves no copy behind.
            held: Plaintext::with_capacity(frame_length.bytes()),
        };
        (sealer, bytes)
    }

    /// Takes more plaintext, and returns the frames that are certain: all full ones behind which
    /// another byte has come. Takes the memory of those and of one frame.
    ///
    /// # Panics
    /// When the plaintext passes [`MAX_PLAINTEXT`].
    pub fn push(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let full = self.frame_length.bytes();
        let mut out = Vec::with_capacity(self.sealed_len(plaintext.len()));
        let mut rest = plaintext;
        while !rest.is_empty() {
            if self.held.len() == full {
                let held = mem::take(&mut self.held);
                self.seal_regular(&held, &mut out);
                self.held = held;
                self.held.clear();
            }
            // A frame that lies whole in this piece, and is not its end, is copied once.
            while self.held.is_empty() && rest.len() > full {
                let (content, behind) = rest.split_at(full);
                self.seal_regular(content, &mut out);
                rest = behind;
            }
            let (front, behind) = rest.split_at(rest.len().min(full - self.held.len()));
            self.held.extend_from_slice(front);
            rest = behind;
        }
        out
    }

    /// Ends the message, and returns its final frame.
    ///
    /// # Panics
    /// As [`Sealer::push`].
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(super::frames::sealed_len(
            self.held.len(),
            self.frame_length,
        ));
        self.body().seal_final(self.next, &self.held, &mut out);
        out
    }

    fn seal_regular(&mut self, content: &[u8], out: &mut Vec<u8>) {
        self.body().seal_regular(self.next, content, out);
        let next = self.next.checked_add(1);
        self.next = next.expect("a message has at most 2^32 - 1 frames");
    }

    fn body(&self) -> Body<'_> {
        Body::new(&self.content, &self.message_id)
    }

    /// The most bytes that `more` plaintext can make certain.
    fn sealed_len(&self, more: usize) -> usize {
        let regular = self.frame_length.regular_frames(self.held.len() + more);
        self.frame_length.sealed_regular(regular)
    }
}

/// Collects the bytes of a message until its header is whole: at most those of the longest header
/// that [`Message::parse`] takes, and a few more.
#[derive(Default)]
pub struct Head {
    bytes: Vec<u8>,
    /// So many bytes more are needed before it is worth to look again.
    missing: usize,
}

/// What a [`Head`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It needs more bytes.
    Begun,
    /// The header, and perhaps the beginning of the body.
    Whole,
}

impl Head {
    /// Takes bytes off the front of `chunk`. With [`Progress::Whole`], what is left of it belongs
    /// to the body, behind what [`Head::message`] has of that.
    ///
    /// # Errors
    /// The [`Flaw`] of the header that comes first.
    pub fn push(&mut self, chunk: &mut &[u8]) -> Result<Progress, Flaw> {
        while !chunk.is_empty() {
            // Few looks, however small the fields and the chunks are.
            let wanted = self.missing.max(STRIDE);
            let (front, behind) = chunk.split_at(wanted.min(chunk.len()));
            self.bytes.extend_from_slice(front);
            *chunk = behind;
            self.missing = self.missing.saturating_sub(front.len());
            if self.missing > 0 || self.bytes.len() < header::TELLING {
                continue;
            }
            let mut reader = Reader::new(&self.bytes);
            match Header::read(&mut reader, None) {
                Ok(_) => return Ok(Progress::Whole),
                Err(Flaw::Truncated) if reader.missing() > 0 => self.missing = reader.missing(),
                Err(flaw) => return Err(flaw),
            }
        }
        Ok(Progress::Begun)
    }

    /// The message, as far as it was taken.
    ///
    /// # Errors
    /// As [`Message::parse`]: [`Flaw::Truncated`] before the header is whole.
    pub fn message(&self) -> Result<Message<'_>, Flaw> {
        Message::parse(&self.bytes)
    }
}

/// Opens the frames of a message whose header is proved, piece by piece: what it returns is
/// verified, and the whole message is when [`Opener::finish`] says so.
pub struct Opener {
    content: aead::Key,
    message_id: [u8; MESSAGE_ID],
    place: Place,
    /// The beginning of the next frame, sealed.
    held: Vec<u8>,
    /// So many bytes more are needed before it is worth to look again.
    missing: usize,
}

impl Message<'_> {
    /// Checks what [`Message::open`] checks of the header, and returns what opens the frames, to
    /// be begun with [`Message::body`].
    ///
    /// # Errors
    /// The [`Flaw`] that comes first.
    pub fn unseal(
        &self,
        data_key: &Secret<DATA_KEY>,
        associated_data: &[u8],
    ) -> Result<Opener, Flaw> {
        let keys = Keys::derive(data_key, self.header.message_id);
        self.header.verify(&keys, associated_data)?;
        Ok(Opener {
            content: keys.content,
            message_id: *self.header.message_id,
            place: Place::first(self.header.framing, MAX_FRAME),
            held: Vec::new(),
            missing: 0,
        })
    }
}

impl Opener {
    /// Takes more of the body, and returns the plaintext of the frames that it completes. Takes
    /// the memory of `chunk` twice, and that of one frame of at most [`MAX_FRAME`].
    ///
    /// # Errors
    /// The [`Flaw`] that comes first, [`Flaw::LongFrame`] among them: nothing of `chunk` is
    /// returned then, and the message is to be given up.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Plaintext, Flaw> {
        if !self.held.is_empty() && chunk.len() < self.missing {
            self.held.extend_from_slice(chunk);
            self.missing -= chunk.len();
            return Ok(Plaintext::default());
        }
        // Plaintext is shorter than its frames, so this never grows and leaves no copy behind.
        let room = self.held.len() + chunk.len();
        let mut plaintext = Plaintext::with_capacity(room);
        let mut rest = chunk;
        let mut held = mem::take(&mut self.held);
        while !held.is_empty() && !rest.is_empty() {
            let (front, behind) = rest.split_at(self.missing.min(rest.len()));
            held.extend_from_slice(front);
            rest = behind;
            self.missing -= front.len();
            if self.missing == 0 && self.open(&held, &mut plaintext)?.is_some() {
                held.clear();
            }
        }
        // Its memory serves the next frame.
        self.held = held;
        while !rest.is_empty() {
            match self.open(rest, &mut plaintext)? {
                Some(length) => rest = rest.get(length..).unwrap_or_default(),
                None => {
                    self.held.extend_from_slice(rest);
                    break;
                }
            }
        }
        Ok(plaintext)
    }

    /// The end of the message.
    ///
    /// # Errors
    /// [`Flaw::Truncated`] before the end of the final frame.
    pub fn finish(self) -> Result<(), Flaw> {
        match self.place.is_behind() {
            true => Ok(()),
            false => Err(Flaw::Truncated),
        }
    }

    /// Opens the frame at the front of `bytes`, and returns its length; none, with `missing` set,
    /// when it is not whole.
    fn open(&mut self, bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<Option<usize>, Flaw> {
        let mut reader = Reader::new(bytes);
        match self.place.read(&mut reader) {
            Ok(frame) => {
                Body::new(&self.content, &self.message_id).open(&frame, plaintext)?;
                Ok(Some(bytes.len() - reader.rest().len()))
            }
            Err(Flaw::Truncated) if reader.missing() > 0 => {
                self.missing = reader.missing();
                Ok(None)
            }
            Err(flaw) => Err(flaw),
        }
    }
}

/// Longest plaintext of a message that a [`Sealer`] makes, in bytes: 2^32 − 1 frames.
pub const MAX_PLAINTEXT: u64 = 0xffff_ffff * 4096;
/// Longest content of a frame, or of a body without frames, that an [`Opener`] takes, in bytes: it
/// is held whole until its tag is verified.
pub const MAX_FRAME: u64 = 1 << 20;
/// Bytes taken at a time while a header is looked for: most headers have fewer.
const STRIDE: usize = 2048;

#[cfg(test)]
mod tests;
