//! What the kernel tells of over netlink: which nftables tables have changed, and that a link has gone.
//!
//! Source of the formats: netlink(7), rtnetlink(7), the kernel's `linux/netfilter/nfnetlink.h` and `nf_tables.h`. Integers
//! are in the machine's byte order. Of nftables' messages, every one but a new generation's names its table in the
//! attribute of type 1.

use super::ParseError;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const NFTABLES: u8 = 10;

/// `NFT_MSG_NEWGEN`: a transaction is over. It has no table.
const NEW_GENERATION: u8 = 15;

/// The attribute with the table's name (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, …).
const TABLE: u16 = 1;

/// `NFPROTO_IPV4`.
pub const IPV4: u8 = 2;

/// `NFPROTO_IPV6`.
pub const IPV6: u8 = 10;

/// `RTM_NEWLINK`: there is a link, or it has changed.
const NEW_LINK: u16 = 16;

/// `RTM_DELLINK`: a link is gone.
const DELETED_LINK: u16 = 17;

/// Where `ifi_flags` stands in a link's message.
const LINK_FLAGS_AT: usize = 24;

/// `IFF_UP` without `IFF_RUNNING`: it is meant to work, and has no carrier.
const LINK_UP: u32 = 0x1;
const LINK_RUNNING: u32 = 0x40;

/// `NFT_MSG_GETGEN`: which generation of rules is in force?
const GET_GENERATION: u8 = 16;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 1;

/// `NLMSG_ERROR`: what became of a request, as a negative error number.
pub(super) const OUTCOME: u16 = 2;

pub(super) const MESSAGE_HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// Calls `found` with the family and the name of the table that each message of a datagram is about.
pub fn tables<'a>(datagram: &'a [u8], mut found: impl FnMut(u8, &'a [u8])) -> Result<(), ParseError> {
    messages(datagram, |kind, message| {
        let [kind, subsystem] = kind.to_le_bytes();
        if subsystem == NFTABLES && kind != NEW_GENERATION {
            let [family, _, _, _] = array::<4>(message, MESSAGE_HEADER_BYTES)?;
            let name =
                attribute(message, MESSAGE_HEADER_BYTES + 4, TABLE)?.ok_or(ParseError::Missing("table's name"))?;
            found(family, name.strip_suffix(&[0]).unwrap_or(name));
        }
        Ok(())
    })
}

/// A request that every kernel with nftables answers.
pub fn generation_request() -> [u8; MESSAGE_HEADER_BYTES + 4] {
    let mut request = [0; MESSAGE_HEADER_BYTES + 4];
    let fields = u32::to_ne_bytes(20).into_iter();
    let fields = fields.chain(u16::from_le_bytes([GET_GENERATION, NFTABLES]).to_ne_bytes());
    let fields = fields.chain(REQUEST.to_ne_bytes());
    request.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    request
}

/// Whether a datagram says that the request it answers was refused.
pub fn is_refusal(datagram: &[u8]) -> Result<bool, ParseError> {
    let mut refused = false;
    messages(datagram, |kind, message| {
        refused |= kind == OUTCOME && array(message, MESSAGE_HEADER_BYTES).map(i32::from_ne_bytes)? != 0;
        Ok(())
    })?;
    Ok(refused)
}

/// Whether a datagram says that a link is gone, or has lost its carrier.
pub fn link_lost(datagram: &[u8]) -> Result<bool, ParseError> {
    let mut lost = false;
    messages(datagram, |kind, message| {
        lost |= match kind {
            DELETED_LINK => true,
            NEW_LINK => {
                let flags = array(message, LINK_FLAGS_AT).map(u32::from_ne_bytes)?;
                flags & (LINK_UP | LINK_RUNNING) == LINK_UP
            }
            _ => false,
        };
        Ok(())
    })?;
    Ok(lost)
}

/// Calls `each` with the type of every message and all of it.
pub(super) fn messages<'a>(
    datagram: &'a [u8],
    mut each: impl FnMut(u16, &'a [u8]) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = array(rest, 0).map(u32::from_ne_bytes)?;
        let message = part(rest, usize::try_from(length).ok(), MESSAGE_HEADER_BYTES)?;
        rest = after(rest, message);
        each(array(message, 4).map(u16::from_ne_bytes)?, message)?;
    }
    Ok(())
}

/// The value of the first attribute of that type, of those that begin there in a message.
pub(super) fn attribute(message: &[u8], at: usize, wanted: u16) -> Result<Option<&[u8]>, ParseError> {
    let mut rest = message.get(at..).unwrap_or_default();
    while !rest.is_empty() {
        let length = array(rest, 0).map(u16::from_ne_bytes)?;
        let attribute = part(rest, Some(usize::from(length)), ATTRIBUTE_HEADER_BYTES)?;
        if array(attribute, 2).map(u16::from_ne_bytes)? == wanted {
            return Ok(attribute.get(ATTRIBUTE_HEADER_BYTES..));
        }
        rest = after(rest, attribute);
    }
    Ok(None)
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ParseError> {
    let array = bytes.get(at..at + N).and_then(|part| part.try_into().ok());
    array.ok_or(ParseError::Missing("rest of a message"))
}

/// The first `length` bytes, of which there are `least` or more.
fn part(bytes: &[u8], length: Option<usize>, least: usize) -> Result<&[u8], ParseError> {
    let part = length.filter(|length| *length >= least).and_then(|length| bytes.get(..length));
    part.ok_or(ParseError::Missing("rest of a message"))
}

/// What follows a part, which is padded to four bytes.
fn after<'a>(bytes: &'a [u8], part: &[u8]) -> &'a [u8] {
    bytes.get(part.len().next_multiple_of(4)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 7];
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn seen(datagram: &[u8]) -> Result<Vec<(u8, String)>, ParseError> {
        let mut seen = Vec::new();
        tables(datagram, |family, name| seen.push((family, String::from_utf8_lossy(name).into_owned())))?;
        Ok(seen)
    }

    #[test]
    fn names_the_table_of_each_message() {
        let rule = 10 << 8 | 6;
        let datagram = [
            message(10 << 8, IPV4, &[(2, b"\0\0\0\0"), (1, b"cni_hostport\0")]),
            message(rule, IPV6, &[(1, b"nat\0"), (2, b"CNI-DN-x\0")]),
            message(10 << 8 | 15, 0, &[(1, b"\0\0\0\x07")]),
            message(1 << 8, IPV4, &[(1, b"\0\0\0\x07")]),
        ]
        .concat();
        assert_eq!(seen(&datagram).unwrap(), [(IPV4, "cni_hostport".to_owned()), (IPV6, "nat".to_owned())]);
        assert!(seen(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_lost_link_is_one_that_is_gone_or_without_carrier() {
        let link = |kind, flags: u32| {
            let mut message = 32_u32.to_ne_bytes().to_vec();
            message.extend(u16::to_ne_bytes(kind));
            message.extend([0; 18]);
            message.extend(flags.to_ne_bytes());
            message.extend([0; 4]);
            message
        };
        for (kind, flags, expect) in
            [(17, 0, true), (16, 0x1, true), (16, 0x41, false), (16, 0, false), (20, 0x1, false)]
        {
            assert_eq!(link_lost(&link(kind, flags)).unwrap(), expect, "{kind} {flags}");
        }
        let both = [link(17, 0), link(16, 0x41)].concat();
        assert!(link_lost(&both).unwrap());
        assert!(link_lost(&both[..40]).is_err());
    }

    #[test]
    fn a_refusal_is_told_from_an_answer() {
        let outcome = |error: i32| {
            let mut message = message(OUTCOME, 0, &[]);
            message[16..20].copy_from_slice(&error.to_ne_bytes());
            message
        };
        assert!(is_refusal(&outcome(-22)).unwrap());
        assert!(!is_refusal(&outcome(0)).unwrap());
        assert!(!is_refusal(&message(10 << 8 | 15, 0, &[(1, b"\0\0\0\x07")])).unwrap());
        assert!(is_refusal(&outcome(-22)[..18]).is_err());
        assert_eq!(generation_request()[..8], *[20u32.to_ne_bytes(), [16, 10, 1, 0]].concat());
    }

    #[test]
    fn no_bytes_panic_and_no_cut_goes_unnoticed() {
        let whole = message(10 << 8 | 6, IPV4, &[(2, b"CNI-DN-x\0"), (1, b"nat\0"), (3, b"12345")]);
        for end in 1..whole.len() {
            assert!(seen(&whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 2, 3, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                // Any answer will do.
                let _ = seen(&bytes);
            }
        }
        assert!(seen(&message(10 << 8 | 6, IPV4, &[(2, b"x")])).is_err(), "no name");
    }
}
