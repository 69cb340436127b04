//! Which sources feed which sinks: the rule by which Rancher Desktop's flags choose, as a table of its own.
//!
//! | flags | sources | sinks, unless `--sink` names others |
//! |---|---|---|
//! | `-privilegedService` | engines; NAT rules | vtunnel; listeners for containerd's ports |
//! | `-docker` or `-containerd` | engines; NAT rules; sockets | host-switch and wsl-proxy |
//! | neither | NAT rules | listeners |
//!
//! Sockets are watched where `-sockets` says so; where it is not given, with host-switch. NAT rules are read where
//! `-iptables` says so; where it is not given, with `-kubernetes`, and where there is no engine.

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
    /// `-sockets`, where it is given.
    pub sockets: Option<bool>,
    /// `--sink`, at least one.
    pub sink: bool,
    /// One of them is host-switch.
    pub host_switch_sink: bool,
}

/// A sink that a mode calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeSink {
    /// The Privileged Service, through vtunnel.
    Vtunnel,
    /// Listeners in the guest.
    Listener,
    /// host-switch's expose API.
    HostSwitch,
    /// wsl-proxy, in another namespace of the guest.
    WslProxy,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// Whether NAT rules are read. Engines and Kubernetes are as their flags say.
    pub nat: bool,
    /// Whether sockets are watched.
    pub sockets: bool,
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
}

/// The mode for the flags.
pub fn choose(given: Given) -> Result<Mode, NoMode> {
    let engine = given.docker || given.containerd;
    if given.docker && given.containerd && given.iptables == Some(true) {
        return Err(NoMode::TooManySources);
    }
    let nat = given.iptables.unwrap_or(given.kubernetes || !engine);
    let mut sinks = Vec::new();
    if given.sink {
        // Those that are named are all there is.
    } else if given.privileged_service {
        sinks.push((ModeSink::Vtunnel, Source::ALL));
        if given.containerd {
            let containers: &[Source] = &[Source::Containerd];
            sinks.push((ModeSink::Listener, containers));
        }
    } else if engine {
        sinks.push((ModeSink::HostSwitch, Source::ALL));
        sinks.push((ModeSink::WslProxy, Source::WITH_AGENT));
    } else {
        sinks.push((ModeSink::Listener, Source::ALL));
    }
    let host_switch = given.host_switch_sink || sinks.iter().any(|(sink, _)| *sink == ModeSink::HostSwitch);
    let sockets = given.sockets.unwrap_or(host_switch);
    if !engine && !given.kubernetes && !nat && !sockets {
        return Err(NoMode::NoSource);
    }
    Ok(Mode { nat, sockets, sinks })
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
        const SWITCH: &str = "hostswitch<all wslproxy<all+agent";
        const NOTHING: &str = "no source";
        const TOO_MANY: &str = "too many";
        // docker, containerd, kubernetes; then for -iptables not given, true, false: NAT rules and sinks with
        // -privilegedService, and without.
        type Cell = (&'static str, &'static str);
        let table: [([bool; 3], [Cell; 3], [bool; 3]); 8] = [
            ([false, false, false], [(PEER, LISTENER), (PEER, LISTENER), (NOTHING, NOTHING)], [true, true, false]),
            ([false, false, true], [(PEER, LISTENER); 3], [true, true, false]),
            ([true, false, false], [(PEER, SWITCH); 3], [false, true, false]),
            ([true, false, true], [(PEER, SWITCH); 3], [true, true, false]),
            ([false, true, false], [(BOTH, SWITCH); 3], [false, true, false]),
            ([false, true, true], [(BOTH, SWITCH); 3], [true, true, false]),
            ([true, true, false], [(BOTH, SWITCH), (TOO_MANY, TOO_MANY), (BOTH, SWITCH)], [false, true, false]),
            ([true, true, true], [(BOTH, SWITCH), (TOO_MANY, TOO_MANY), (BOTH, SWITCH)], [true, true, false]),
        ];
        let mut rows = 0;
        for ([docker, containerd, kubernetes], cells, nats) in table {
            for ((iptables, (privileged, alone)), nat) in
                [None, Some(true), Some(false)].into_iter().zip(cells).zip(nats)
            {
                for (privileged_service, sinks) in [(true, privileged), (false, alone)] {
                    let given =
                        Given { docker, containerd, kubernetes, iptables, privileged_service, ..Given::default() };
                    let sockets = sinks == SWITCH;
                    assert_eq!(shown(choose(given)), row(nat, sockets, sinks), "{given:?}");
                    // --sink replaces the sinks, whatever they are, and nothing else but what comes with host-switch.
                    let named = Given { sink: true, ..given };
                    let sinks = if matches!(sinks, NOTHING | TOO_MANY) { sinks } else { "" };
                    assert_eq!(shown(choose(named)), row(nat, false, sinks), "{given:?} --sink");
                    // -sockets is a source like the others, and given as false it is none.
                    let sinks = if sinks == NOTHING { "" } else { sinks };
                    let all = Given { host_switch_sink: true, ..named };
                    assert_eq!(shown(choose(all)), row(nat, true, sinks), "{given:?} --sink http://…");
                    let all = Given { sockets: Some(true), ..named };
                    assert_eq!(shown(choose(all)), row(nat, true, sinks), "{given:?} -sockets");
                    let none = Given { sockets: Some(false), ..given };
                    let without = shown(choose(given)).replace("sockets=true", "sockets=false");
                    assert_eq!(shown(choose(none)), without, "{given:?} -sockets=false");
                    rows += 5;
                }
            }
        }
        assert_eq!(rows, 2 * 2 * 2 * 3 * 2 * 5, "every combination of flags");

        fn row(nat: bool, sockets: bool, sinks: &str) -> String {
            match sinks {
                NOTHING | TOO_MANY => sinks.to_owned(),
                _ => format!("nat={nat} sockets={sockets} {sinks}"),
            }
        }
    }

    fn shown(mode: Result<Mode, NoMode>) -> String {
        match mode {
            Err(NoMode::TooManySources) => "too many".into(),
            Err(NoMode::NoSource) => "no source".into(),
            Ok(Mode { nat, sockets, sinks }) => {
                let sink = |(sink, feeds): &(ModeSink, &[Source])| {
                    let feeds: Vec<&str> = feeds.iter().map(|s| s.as_str()).collect();
                    let feeds = feeds.join("+").replace("docker+containerd+nat+kubernetes+sockets", "all");
                    format!("{}<{feeds}", format!("{sink:?}").to_lowercase())
                };
                format!("nat={nat} sockets={sockets} {}", sinks.iter().map(sink).collect::<Vec<_>>().join(" "))
            }
        }
    }
}
