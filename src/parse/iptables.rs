//! The output of `iptables-save -t nat` and `ip6tables-save -t nat`, of both variants: DNAT rules in the chains of CNI's
//! portmap plugin (`CNI-DN-…`) and of netavark (`NETAVARK-DN-…`).
//!
//! Source of the format: iptables' `iptables-save(8)` and `xtables_save_string` (words with other characters than letters,
//! digits and a few more stand in quotes, with a backslash before quotes and backslashes; newlines stay as they are),
//! and what iptables 1.8.9 was seen to print. Comments are anybody's text: the output is read as words, never as lines.
//! It counts only as a whole, from `*nat` to `COMMIT`; no output at all is a table without rules.

use std::net::IpAddr;

use super::ParseError;
use super::nat::{Builder, Destination, Ports, Rule, View};
use crate::cidr::Cidr;
use crate::ordered::Map;
use crate::port::Protocol;

/// How the chains begin whose rules lead to containers.
const CHAINS: &[&str] = &["CNI-DN-", NETAVARK];

/// How those of Podman's netavark begin.
const NETAVARK: &str = "NETAVARK-DN-";

/// What iptables-nft prints in place of a table in which it finds anything that it would not have made itself.
const FOREIGN: &[u8] = b"# Table `nat' is incompatible";

/// What the rules of the table publish.
pub fn save(output: &[u8]) -> Result<View, ParseError> {
    if output.is_empty() {
        return Ok(View::default());
    }
    let mut lines = Lines(output);
    let mut table: Option<String> = None;
    let mut complete = false;
    // In the order that they are printed in, a chain's rules may come before those that lead to it, which name it.
    let mut names: Map<String, String> = Map::new();
    let mut rules: Vec<Vec<String>> = Vec::new();
    while let Some(words) = lines.next_line()? {
        let Some(first) = words.first() else { continue };
        let in_nat = table.as_deref() == Some("*nat");
        match first.as_str() {
            "COMMIT" if table.take().is_some() => complete |= in_nat,
            name if name.starts_with('*') && table.is_none() => table = Some(name.to_owned()),
            "-A" if in_nat => {
                if let Some((chain, comment)) = named_chain(&words) {
                    names.insert(chain.to_owned(), comment.to_owned());
                }
                if words.get(1).is_some_and(|chain| is_published(chain)) {
                    rules.push(words);
                }
            }
            "-A" if table.is_some() => {}
            chain if chain.starts_with(':') && table.is_some() => {}
            _ => return Err(ParseError::Missing("rule, chain or COMMIT")),
        }
    }
    if output.starts_with(FOREIGN) {
        return Err(ParseError::Foreign("nat"));
    }
    if table.is_some() || !complete {
        return Err(ParseError::Missing("complete table nat"));
    }
    let mut builder = Builder::default();
    for words in &rules {
        let [_, chain, options @ ..] = words.as_slice() else { continue };
        match rule(chain, names.get(chain).unwrap_or(chain), options) {
            Ok(Some(rule)) => builder.add(&rule, || words.join(" "))?,
            Ok(None) => {}
            Err(reason) => builder.view.leave_out(reason, &words.join(" ")),
        }
    }
    Ok(builder.view)
}

fn is_published(chain: &str) -> bool {
    CHAINS.iter().any(|prefix| chain.starts_with(prefix))
}

/// The chain that a rule leads to, and the container's id in its comment: `dnat name: "bridge" id: "default-abc"`
/// (portmap), `dnat name: podman id: 1f2e…` (netavark). Long ones are cut.
fn named_chain(words: &[String]) -> Option<(&str, &str)> {
    let after = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
    let chain = after("-j").filter(|chain| is_published(chain))?;
    let (_, id) = after("--comment")?.rsplit_once(" id: ")?;
    let id = id.trim_matches('"');
    (!id.is_empty()).then_some((chain, id))
}

/// `None`: it changes no destination. An error: it does, and says more than is understood.
fn rule<'a>(chain: &str, name: &'a str, options: &[String]) -> Result<Option<Rule<'a>>, &'static str> {
    if !options.windows(2).any(|pair| matches!(pair, [option, target] if option == "-j" && target == "DNAT")) {
        return Ok(None);
    }
    let mut fields = Fields::default();
    let mut words = options.iter().map(String::as_str);
    while let Some(option) = words.next() {
        match option {
            // What they add to the choice of a port or address does not change what is published.
            "--random" | "--persistent" => {}
            "!" => return Err("it says what it does not match"),
            _ => fields.take(option, words.next().ok_or("it ends early")?)?,
        }
    }
    let rule = Rule {
        name,
        podman: chain.starts_with(NETAVARK),
        protocol: fields.protocol.ok_or("it has no protocol")?,
        host_ip: fields.host_ip,
        ports: fields.ports.ok_or("it has no port")?,
        to: fields.to.ok_or("it leads nowhere")?,
    };
    Ok(Some(rule))
}

#[derive(Default)]
struct Fields {
    protocol: Option<Protocol>,
    host_ip: Option<IpAddr>,
    ports: Option<Vec<Ports>>,
    to: Option<Destination>,
    target: Option<()>,
}

impl Fields {
    fn take(&mut self, option: &str, value: &str) -> Result<(), &'static str> {
        match option {
            "-p" => set(&mut self.protocol, Protocol::parse(value).ok_or("its protocol is neither tcp nor udp")?),
            "-d" => {
                let range = Cidr::parse(value).filter(Cidr::is_single).ok_or("its destination is not one address")?;
                set(&mut self.host_ip, range.ip())
            }
            "--dport" => set(&mut self.ports, vec![Ports::parse(value, ':').ok_or("its ports are not understood")?]),
            "--dports" => {
                let ports: Option<Vec<Ports>> = value.split(',').map(|ports| Ports::parse(ports, ':')).collect();
                set(&mut self.ports, ports.ok_or("its ports are not understood")?)
            }
            "-j" if value == "DNAT" => set(&mut self.target, ()),
            "--to-destination" => set(&mut self.to, destination(value).ok_or("where it leads is not understood")?),
            "-m" if matches!(value, "tcp" | "udp" | "multiport" | "comment") => Ok(()),
            "--comment" => Ok(()),
            _ => Err("it has more than is understood"),
        }
    }
}

fn set<T>(field: &mut Option<T>, value: T) -> Result<(), &'static str> {
    if field.is_some() {
        return Err("it says something twice");
    }
    *field = Some(value);
    Ok(())
}

/// `10.4.0.5`, `10.4.0.5:80`, `10.4.0.5:80-90`, `10.4.0.5:80-90/8000`, `fd00::5`, `[fd00::5]:80`.
fn destination(text: &str) -> Option<Destination> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Destination { address, ports: None, base: None });
    }
    let (address, ports) = text.rsplit_once(':')?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let address: IpAddr = bare.unwrap_or(address).parse().ok()?;
    if address.is_ipv6() != bare.is_some() {
        return None;
    }
    let (ports, base) = match ports.split_once('/') {
        Some((ports, base)) => (ports, Some(base.parse().ok()?)),
        None => (ports, None),
    };
    Some(Destination { address, ports: Some(Ports::parse(ports, '-')?), base })
}

/// Lines of words, of which each may be in quotes and hold newlines. What is not UTF-8 is replaced.
struct Lines<'a>(&'a [u8]);

impl Lines<'_> {
    fn take(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The words of the next line; `None` at the end. Remarks of the tool (`# …`) are lines without words.
    fn next_line(&mut self) -> Result<Option<Vec<String>>, ParseError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut words = Vec::new();
        if self.0.first() == Some(&b'#') {
            while !matches!(self.take(), None | Some(b'\n')) {}
            return Ok(Some(words));
        }
        let mut word: Option<Vec<u8>> = None;
        loop {
            match self.take() {
                end @ (None | Some(b' ' | b'\n')) => {
                    words.extend(word.take().map(|word| String::from_utf8_lossy(&word).into_owned()));
                    if end != Some(b' ') {
                        return Ok(Some(words));
                    }
                }
                Some(b'"') => self.quoted(word.get_or_insert_default())?,
                Some(byte) => word.get_or_insert_default().push(byte),
            }
        }
    }

    /// Takes up to the closing quote.
    fn quoted(&mut self, word: &mut Vec<u8>) -> Result<(), ParseError> {
        loop {
            let byte = match self.take() {
                Some(b'"') => return Ok(()),
                Some(b'\\') => self.take(),
                byte => byte,
            };
            word.push(byte.ok_or(ParseError::Missing("closing quote"))?);
        }
    }
}

#[cfg(test)]
mod tests;
