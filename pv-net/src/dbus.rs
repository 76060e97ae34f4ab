//! Messages of D-Bus (the D-Bus specification, section "Message Protocol"): what is needed to call a method and to see
//! whether that was done. Pure.

/// A longer message is skipped: no answer to the calls made here is.
const LONGEST: usize = 64 << 10;
/// No message is longer, with its header, and no array, such as a header's fields (the specification, section "Message
/// Format").
const LONGEST_OF_ALL: usize = 128 << 20;
const LONGEST_ARRAY: usize = 64 << 20;
/// Bytes of a header before its fields.
const HEAD: usize = 16;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
/// The flag by which a service that does not run is not started by a call.
const NO_AUTO_START: u8 = 2;

/// Values as they are written to a message: little endian, each aligned to its size.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }

    /// `u`, `i` or `b`.
    pub fn word(mut self, value: u32) -> Self {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    /// `s` or `o`.
    pub fn text(mut self, text: &str) -> Self {
        self = self.word(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    /// `ay`.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self = self.word(bytes.len() as u32);
        self.0.extend(bytes);
        self
    }

    /// `a(...)`, with one structure.
    pub fn one(mut self, structure: impl FnOnce(Self) -> Self) -> Self {
        self = self.word(0);
        let at = self.0.len();
        self.align(8);
        let begin = self.0.len();
        self = structure(self);
        let len = (self.0.len() - begin) as u32;
        self.0[at - 4..at].copy_from_slice(&len.to_le_bytes());
        self
    }

    /// A field of a header: its number, and a value of type `s`, `o` or `g`.
    fn field(mut self, number: u8, kind: u8, text: &str) -> Self {
        self.align(8).0.extend([number, 1, kind, 0]);
        if kind != b'g' {
            return self.text(text);
        }
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }
}

/// A call of a method.
pub struct Call {
    /// Who is called.
    pub destination: &'static str,
    /// The object.
    pub path: &'static str,
    /// Its interface.
    pub interface: &'static str,
    /// The method.
    pub member: &'static str,
    /// The types of its arguments.
    pub signature: &'static str,
    /// Its arguments.
    pub body: Body,
}

impl Call {
    /// The message with this number, which the reply names.
    pub fn to_bytes(&self, serial: u32) -> Vec<u8> {
        let mut message = Body(vec![b'l', METHOD_CALL, NO_AUTO_START, 1]);
        message = message.word(self.body.0.len() as u32).word(serial).word(0);
        message = message.field(1, b'o', self.path).field(2, b's', self.interface);
        message = message.field(3, b's', self.member).field(6, b's', self.destination);
        if !self.signature.is_empty() {
            message = message.field(8, b'g', self.signature);
        }
        let len = (message.0.len() - HEAD) as u32;
        message.0[HEAD - 4..HEAD].copy_from_slice(&len.to_le_bytes());
        message.align(8).0.extend(&self.body.0);
        message.0
    }
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The call with this number was carried out.
    Done(u32),
    /// The call with this number was not carried out.
    Refused {
        /// The number.
        serial: u32,
        /// The error's name.
        name: String,
        /// What it says.
        text: String,
    },
    /// A signal.
    Signal {
        /// Its name.
        name: String,
        /// Who sent it, as the bus says.
        sender: String,
    },
    /// Something else.
    Other,
}

/// What came is no message.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// Reads the first message of `came`, and tells its length; `None` when it is not all there yet. What others on the bus
/// send need not be understood: it is [`Incoming::Other`]. So is a message that is too long to be kept, of which the rest
/// may not be there yet.
///
/// # Errors
/// When what came is no message, so that nobody knows where the next one begins.
pub fn read(came: &[u8]) -> Result<Option<(Incoming, usize)>, Broken> {
    let Some(head) = came.first_chunk::<HEAD>() else { return Ok(None) };
    let word = |at: usize| {
        let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let word = if head[0] == b'B' { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        word as usize
    };
    let (body_len, fields_len) = (word(4), word(12));
    if !matches!(head[0], b'l' | b'B') || fields_len > LONGEST_ARRAY || body_len > LONGEST_OF_ALL {
        return Err(Broken);
    }
    let body = (HEAD + fields_len).next_multiple_of(8);
    let len = body + body_len;
    if len > LONGEST_OF_ALL {
        return Err(Broken);
    }
    if len > LONGEST {
        return Ok(Some((Incoming::Other, len)));
    }
    let Some(message) = came.get(..len) else { return Ok(None) };
    // The bus and systemd-resolved are programs of this machine, and write as it does.
    let incoming = if head[0] == b'l' { meaning(message, HEAD + fields_len, body) } else { Ok(Incoming::Other) };
    Ok(Some((incoming.unwrap_or(Incoming::Other), len)))
}

/// What a message says. Its fields end at `fields_end`, and its body begins at `body`.
fn meaning(message: &[u8], fields_end: usize, body: usize) -> Result<Incoming, Broken> {
    let mut fields = Reader { bytes: message.get(..fields_end).ok_or(Broken)?, at: HEAD };
    let (mut serial, mut member, mut name, mut sender, mut signature) = (None, None, None, None, None);
    while fields.at < fields.bytes.len() {
        fields.align(8);
        let number = fields.byte()?;
        let kind = fields.signature()?;
        match (number, kind) {
            (5, "u") => serial = Some(fields.word()?),
            (3, "s") => member = Some(fields.text()?),
            (4, "s") => name = Some(fields.text()?),
            (7, "s") => sender = Some(fields.text()?),
            (8, "g") => signature = Some(fields.signature()?),
            (_, "u") => drop(fields.word()?),
            (_, "s" | "o") => drop(fields.text()?),
            (_, "g") => drop(fields.signature()?),
            _ => return Err(Broken),
        }
    }
    Ok(match (message[1], serial, member, name) {
        (METHOD_RETURN, Some(serial), ..) => Incoming::Done(serial),
        (ERROR, Some(serial), _, Some(name)) => {
            let has_text = signature.is_some_and(|signature| signature.starts_with('s'));
            let text = if has_text { Reader { bytes: message, at: body }.text()? } else { "" };
            Incoming::Refused { serial, name: name.to_owned(), text: text.to_owned() }
        }
        (SIGNAL, _, Some(member), _) => {
            Incoming::Signal { name: member.to_owned(), sender: sender.unwrap_or_default().to_owned() }
        }
        _ => Incoming::Other,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Broken> {
        let end = self.at.checked_add(len).ok_or(Broken)?;
        let taken = self.bytes.get(self.at..end).ok_or(Broken)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Result<u32, Broken> {
        self.align(4);
        self.take(4)?.first_chunk().map(|word| u32::from_le_bytes(*word)).ok_or(Broken)
    }

    fn terminated(&mut self, len: usize) -> Result<&'a str, Broken> {
        let text = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| Broken)
    }

    fn text(&mut self) -> Result<&'a str, Broken> {
        let len = self.word()?;
        self.terminated(len as usize)
    }

    fn signature(&mut self) -> Result<&'a str, Broken> {
        let len = self.byte()?;
        self.terminated(len.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call() -> Vec<u8> {
        let body = Body::default().word(7).one(|s| s.word(2).bytes(&[127, 0, 0, 153]));
        let call = Call {
            destination: "org.freedesktop.resolve1",
            path: "/org/freedesktop/resolve1",
            interface: "org.freedesktop.resolve1.Manager",
            member: "SetLinkDNS",
            signature: "ia(iay)",
            body,
        };
        call.to_bytes(3)
    }

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let bytes = call();
        assert_eq!(bytes[..12], [b'l', 1, 2, 1, 20, 0, 0, 0, 3, 0, 0, 0]);
        // The index, the array's length, the family at a multiple of 8, the address's length, the address.
        assert_eq!(bytes[bytes.len() - 20..], [7, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 127, 0, 0, 153][..]);
    }

    /// An error, as dbus-daemon sends it.
    fn refused() -> Vec<u8> {
        let text = Body::default().text("Link lo is loopback device.");
        let mut message = Body(vec![b'l', ERROR, 1, 1]).word(text.0.len() as u32).word(9).word(0);
        message = message.field(4, b's', "org.freedesktop.resolve1.LinkBusy");
        message.align(8).0.extend([5, 1, b'u', 0, 3, 0, 0, 0]);
        message = message.field(8, b'g', "s").field(7, b's', ":1.5");
        let len = (message.0.len() - HEAD) as u32;
        message.0[HEAD - 4..HEAD].copy_from_slice(&len.to_le_bytes());
        message.align(8).0.extend(text.0);
        message.0
    }

    #[test]
    fn a_reply_is_read_however_it_comes() {
        let bytes = refused();
        let want = Incoming::Refused {
            serial: 3,
            name: "org.freedesktop.resolve1.LinkBusy".to_owned(),
            text: "Link lo is loopback device.".to_owned(),
        };
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), Ok(None), "{len}");
        }
        assert_eq!(read(&[&bytes[..], b"more"].concat()), Ok(Some((want, bytes.len()))));
        assert_eq!(read(&call()), Ok(Some((Incoming::Other, call().len()))));
        // What others send is skipped, however long it is, and whatever it has.
        let mut large = bytes.clone();
        large[6] = 2;
        let len = bytes.len() + (2 << 16);
        assert_eq!(read(&large), Ok(Some((Incoming::Other, len))));
        let mut strange = bytes.clone();
        strange[17] = 9;
        assert_eq!(read(&strange), Ok(Some((Incoming::Other, bytes.len()))));
        let mut other_way_round = bytes.clone();
        other_way_round[0] = b'B';
        other_way_round[4..8].reverse();
        other_way_round[12..16].reverse();
        assert_eq!(read(&other_way_round), Ok(Some((Incoming::Other, bytes.len()))));
        large[7] = 0x10;
        assert_eq!(read(&large), Err(Broken));
        assert_eq!(read(b"x23456789abcdefg"), Err(Broken));
    }

    #[test]
    fn a_signal_has_a_name_and_a_sender() {
        let mut message = Body(vec![b'l', SIGNAL, 1, 1]).word(0).word(9).word(0);
        message = message.field(3, b's', "NameOwnerChanged").field(7, b's', ":1.5");
        let len = (message.0.len() - HEAD) as u32;
        message.0[HEAD - 4..HEAD].copy_from_slice(&len.to_le_bytes());
        message.align(8);
        let want = Incoming::Signal { name: "NameOwnerChanged".to_owned(), sender: ":1.5".to_owned() };
        assert_eq!(read(&message.0), Ok(Some((want, message.0.len()))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(at in 0..100_usize, to in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut message = refused();
            let at = at.min(message.len() - 1);
            message[at] = to;
            drop(read(&message));
            drop(read(&[&[b'l'][..], &bytes].concat()));
        }
    }
}
