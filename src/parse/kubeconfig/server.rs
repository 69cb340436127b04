//! The server's address in a kubeconfig: what of a URL can be asked for, and nothing else.
//!
//! Errors never quote the URL: people put passwords into them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest address, in bytes.
const SERVER_BYTES_MAX: usize = 1024;

/// The longest name of a host, in bytes: what DNS can carry.
const HOST_BYTES_MAX: usize = 253;

/// Reads `https://HOST[:PORT][/PATH]`; gives it without slashes at its end, and its host, an IPv6 address without brackets.
pub(super) fn server(url: &str) -> Result<(String, &str), &'static str> {
    if url.len() > SERVER_BYTES_MAX {
        return Err("longer than 1024 bytes");
    }
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => {
            return Err("http:// would show our credentials to anybody in between: use https://");
        }
        Some(_) | None => return Err("expected https://HOST[:PORT][/PATH]"),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("a user name or password in the address: put credentials into users");
    }
    if path.contains(['?', '#']) {
        return Err("expected no ? and no #");
    }
    let (host, port) = split_port(authority);
    if !is_host(host) {
        return Err("the host is neither a name nor an address (IPv6 goes into brackets)");
    }
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    if !port.is_none_or(digits) {
        return Err("the port is not a number from 1 to 65535");
    }
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b)) {
        return Err("the path has characters that URLs have not");
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((format!("https://{authority}{}", path.trim_end_matches('/')), host))
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // The last colon may be one of an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => is_name(host) || host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// A DNS name. One that ends in a number would be taken for an IPv4 address.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let number = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= HOST_BYTES_MAX && !number && host.split('.').all(label)
}

/// What a certificate can be for: a name or an address, an IPv6 address without brackets.
pub(super) fn is_server_name(name: &str) -> bool {
    is_name(name) || name.parse::<Ipv4Addr>().is_ok() || name.parse::<Ipv6Addr>().is_ok()
}
