//! Which sources feed which sinks: the rule by which Rancher Desktop's flags choose, as a table of its own.
//!
//! | flags | sources | sinks, unless `--sink` names others |
//! |---|---|---|
//! | `-privilegedService` | engines; NAT rules | vtunnel; listeners for containerd's ports |
//! | `-docker` or `-containerd` | engines; NAT rules | host-switch and wsl-proxy (not in this version) |
//! | neither | NAT rules | listeners |
//!
//! NAT rules are read where `-iptables` says so; where it is not given, with `-kubernetes`, and where there is no engine.

use crate::event::Source;

/// The flags that choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// `-docker`
    pub docker: bool,
    /// `-containerd`
    pub containerd: bool,
    /// `-kubernetes`
    pub kubernetes: bool,
    /// `-iptables`, where it is given.
    pub iptables: Option<bool>,
    /// `-privilegedService`
    pub privileged_service: bool,
    /// `--sink`, at least one.
    pub sink: bool,
}

/// A sink that a mode calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeSink {
    /// The Privileged Service, through vtunnel.
    Vtunnel,
    /// Listeners in the guest.
    Listener,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// Whether NAT rules are read. The other sources are as their flags say.
    pub nat: bool,
    /// Each sink with the sources it is told of; none where `--sink` names them.
    pub sinks: Vec<(ModeSink, &'static [Source])>,
}

/// Why there is no mode for the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoMode {
    /// Both engines and `-iptables`.
    TooManySources,
    /// Nothing to watch.
    NoSource,
    /// The sinks for these flags are not in this version.
    NoSink,
}

/// The mode for the flags.
pub fn choose(given: Given) -> Result<Mode, NoMode> {
    let engine = given.docker || given.containerd;
    if given.docker && given.containerd && given.iptables == Some(true) {
        return Err(NoMode::TooManySources);
    }
    let nat = given.iptables.unwrap_or(given.kubernetes || !engine);
    if !engine && !given.kubernetes && !nat {
        return Err(NoMode::NoSource);
    }
    let mut sinks = Vec::new();
    if given.sink {
        return Ok(Mode { nat, sinks });
    }
    if given.privileged_service {
        sinks.push((ModeSink::Vtunnel, Source::ALL));
        if given.containerd {
            sinks.push((ModeSink::Listener, &[Source::Containerd]));
        }
    } else if engine {
        return Err(NoMode::NoSink);
    } else {
        sinks.push((ModeSink::Listener, Source::ALL));
    }
    Ok(Mode { nat, sinks })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the flags, row by row; `None` for `-iptables` that is not given. Written down, not computed: each
    /// row is what Rancher Desktop's flags ask for.
    #[test]
    fn the_whole_table() {
        const PEER: &str = "vtunnel<all";
        const BOTH: &str = "vtunnel<all listener<containerd";
        const LISTENER: &str = "listener<all";
        const NOT_YET: &str = "no sink";
        const NOTHING: &str = "no source";
        const TOO_MANY: &str = "too many";
        // docker, containerd, kubernetes; then for -iptables not given, true, false: NAT rules and sinks with
        // -privilegedService, and without.
        type Cell = (&'static str, &'static str);
        let table: [([bool; 3], [Cell; 3], [bool; 3]); 8] = [
            ([false, false, false], [(PEER, LISTENER), (PEER, LISTENER), (NOTHING, NOTHING)], [true, true, false]),
            ([false, false, true], [(PEER, LISTENER); 3], [true, true, false]),
            ([true, false, false], [(PEER, NOT_YET); 3], [false, true, false]),
            ([true, false, true], [(PEER, NOT_YET); 3], [true, true, false]),
            ([false, true, false], [(BOTH, NOT_YET); 3], [false, true, false]),
            ([false, true, true], [(BOTH, NOT_YET); 3], [true, true, false]),
            ([true, true, false], [(BOTH, NOT_YET), (TOO_MANY, TOO_MANY), (BOTH, NOT_YET)], [false, true, false]),
            ([true, true, true], [(BOTH, NOT_YET), (TOO_MANY, TOO_MANY), (BOTH, NOT_YET)], [true, true, false]),
        ];
        let mut rows = 0;
        for ([docker, containerd, kubernetes], cells, nats) in table {
            for ((iptables, (privileged, alone)), nat) in
                [None, Some(true), Some(false)].into_iter().zip(cells).zip(nats)
            {
                for (privileged_service, sinks) in [(true, privileged), (false, alone)] {
                    let given = Given { docker, containerd, kubernetes, iptables, privileged_service, sink: false };
                    assert_eq!(shown(choose(given)), row(nat, sinks), "{given:?}");
                    // --sink replaces the sinks, whatever they are, and nothing else.
                    let sinks = if matches!(sinks, NOTHING | TOO_MANY) { sinks } else { "" };
                    assert_eq!(shown(choose(Given { sink: true, ..given })), row(nat, sinks), "{given:?} --sink");
                    rows += 2;
                }
            }
        }
        assert_eq!(rows, 2 * 2 * 2 * 3 * 2 * 2, "every combination of flags");

        fn row(nat: bool, sinks: &str) -> String {
            match sinks {
                NOTHING | TOO_MANY | NOT_YET => sinks.to_owned(),
                _ => format!("nat={nat} {sinks}"),
            }
        }
    }

    fn shown(mode: Result<Mode, NoMode>) -> String {
        match mode {
            Err(NoMode::TooManySources) => "too many".into(),
            Err(NoMode::NoSource) => "no source".into(),
            Err(NoMode::NoSink) => "no sink".into(),
            Ok(Mode { nat, sinks }) => {
                let sink = |(sink, feeds): &(ModeSink, &[Source])| {
                    let feeds: Vec<&str> = feeds.iter().map(|s| s.as_str()).collect();
                    let feeds = if feeds.len() == Source::ALL.len() { "all".into() } else { feeds.join("+") };
                    format!("{}<{feeds}", format!("{sink:?}").to_lowercase())
                };
                format!("nat={nat} {}", sinks.iter().map(sink).collect::<Vec<_>>().join(" "))
            }
        }
    }
}
