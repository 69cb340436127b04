//! The agent's flags: names, defaults and help. What their values mean is in [`config`](super).
//!
//! Flags of Rancher Desktop's own agent keep its names and defaults.

use super::commands::COMMANDS;
use crate::flags::{Flag, Section, Takes, Usage};

/// The command line of the agent.
pub static USAGE: Usage = Usage {
    synopsis: "rancher-desktop-guestagent [flags] | COMMAND [flags]",
    about: "Watches which ports of this VM containers publish, and tells the host to forward them. With a command, asks \
            the agent that runs; COMMAND --help says more.",
    commands: &COMMANDS,
    sections: &[
        Section {
            title: "Sources: what is watched",
            flags: &[
                Flag {
                    name: "docker",
                    takes: Takes::Bool,
                    default: "false",
                    help: "watch the Docker Engine API, or Podman's compatible one, at DOCKER_HOST (default unix:///var/run/docker.sock)",
                },
                Flag {
                    name: "containerd",
                    takes: Takes::Bool,
                    default: "false",
                    help: "watch containerd, for the ports that nerdctl publishes",
                },
                Flag {
                    name: "containerdSock",
                    takes: Takes::Value("PATH"),
                    default: "/run/k3s/containerd/containerd.sock",
                    help: "containerd's socket",
                },
                Flag {
                    name: "ctr",
                    takes: Takes::Value("PATH"),
                    default: "",
                    help: "the program ctr, which comes with containerd (default: the first on the PATH)",
                },
                Flag {
                    name: "iptables",
                    takes: Takes::Bool,
                    default: "",
                    help: "watch NAT rules: hostPorts of pods, nerdctl's and Podman's ports (default: with -kubernetes, and where neither -docker nor -containerd is given)",
                },
                Flag {
                    name: "nat-interval",
                    takes: Takes::Value("DURATION"),
                    default: "250ms",
                    help: "how often to look whether rules of iptables-legacy may have changed; those of nftables tell",
                },
                Flag {
                    name: "kubernetes",
                    takes: Takes::Bool,
                    default: "false",
                    help: if cfg!(feature = "kubernetes") {
                        "watch Kubernetes Services: NodePort and LoadBalancer"
                    } else {
                        "watch Kubernetes Services (left out of this build)"
                    },
                },
                Flag {
                    name: "kubeconfig",
                    takes: Takes::Value("PATH"),
                    default: "/etc/rancher/k3s/k3s.yaml",
                    help: "how to reach Kubernetes; may appear, or be replaced, later",
                },
                Flag {
                    name: "insecure-kubernetes-tls",
                    takes: Takes::Bool,
                    default: "false",
                    help: "accept a kubeconfig with insecure-skip-tls-verify: anybody in between can then pretend to be the server",
                },
                Flag {
                    name: "k8sServiceListenerAddr",
                    takes: Takes::Value("IP"),
                    default: "0.0.0.0",
                    help: "where Services are published: 0.0.0.0 or 127.0.0.1",
                },
                Flag {
                    name: "k8sAPIPort",
                    takes: Takes::Value("PORT"),
                    default: "6443",
                    help: "with -kubernetes: the API server's port, which wsl-proxy is told of",
                },
                Flag {
                    name: "sockets",
                    takes: Takes::Bool,
                    default: "",
                    help: "watch sockets that listen in this VM: host-network containers, plain programs (default: with host-switch)",
                },
                Flag {
                    name: "socket-interval",
                    takes: Takes::Value("DURATION"),
                    default: "200ms",
                    help: "how often to look at sockets; what listens is published when it was seen twice",
                },
                Flag {
                    name: "engine-grace",
                    takes: Takes::Value("DURATION"),
                    default: "10s",
                    help: "how long forwards stay while their engine is away: 500ms, 10s, 2m",
                },
            ],
        },
        Section {
            title: "Sinks: who is told",
            flags: &[
                Flag {
                    name: "privilegedService",
                    takes: Takes::Bool,
                    default: "false",
                    help: "tell the Privileged Service on the host, through vtunnel",
                },
                Flag {
                    name: "vtunnelAddr",
                    takes: Takes::Value("HOST:PORT"),
                    default: "127.0.0.1:3040",
                    help: "vtunnel's peer in this VM",
                },
                Flag {
                    name: "sink",
                    takes: Takes::Values("URL"),
                    default: "",
                    help: "tell this peer, in place of what the flags above choose:\nstdout: (one JSON document a change), listener: (listeners in this VM, which WSL forwards), unix://PATH, tcp://HOST:PORT, vsock://CID[:PORT] (the host is CID 2, port 17381), http://HOST[:PORT] or http+unix://PATH (host-switch and other gvisor-tap-vsock hosts), wsl-proxy:[//PATH]",
                },
                Flag {
                    name: "connect-interface",
                    takes: Takes::Value("NAME"),
                    default: "eth0",
                    help: "the interface whose addresses the host connects to",
                },
                Flag {
                    name: "relay-peer",
                    takes: Takes::Values("CIDR"),
                    default: "",
                    help: "who may use the relay to ports published on 127.0.0.1, in place of the default gateway",
                },
                Flag {
                    name: "tap-interface-ip",
                    takes: Takes::Value("IP"),
                    default: "192.168.127.2",
                    help: "this VM's address on host-switch's network",
                },
                Flag {
                    name: "api-token-file",
                    takes: Takes::Value("PATH"),
                    default: "",
                    help: "a file with the bearer token that host-switch's API wants; nobody but its owner may read it",
                },
                Flag {
                    name: "state-file",
                    takes: Takes::Value("PATH"),
                    default: "/run/rancher-desktop-guestagent/state.json",
                    help: "where it is kept what was announced to host-switch, for the next start",
                },
            ],
        },
        Section {
            title: "Exposure",
            flags: &[
                Flag {
                    name: "adminInstall",
                    takes: Takes::Bool,
                    default: "false",
                    help: "the host side has admin rights, and may bind every address; without it all ports are bound on the host's loopback",
                },
                Flag {
                    name: "allow",
                    takes: Takes::Values("RULE"),
                    default: "",
                    help: "publish what matches: PROTO/PORT[-PORT][@SOURCE], with * for anything, such as tcp/8000-8999, udp/*@docker, *. Of all --allow and --deny the first that matches decides",
                },
                Flag { name: "deny", takes: Takes::Values("RULE"), default: "", help: "do not publish what matches" },
                Flag {
                    name: "rules-file",
                    takes: Takes::Value("PATH"),
                    default: "",
                    help: "more rules, behind those of the command line: `allow RULE` or `deny RULE` a line. Read again on SIGHUP",
                },
            ],
        },
        Section {
            title: "General",
            flags: &[
                Flag {
                    name: "check",
                    takes: Takes::Bool,
                    default: "false",
                    help: "check flags and environment, say what would run, and exit",
                },
                Flag {
                    name: "control-socket",
                    takes: Takes::Value("PATH"),
                    default: "",
                    help: "where status, ports and the other commands ask this agent (default: /run/rancher-desktop-guestagent/control.sock, or in XDG_RUNTIME_DIR if not root); \"\" for nowhere",
                },
                Flag { name: "debug", takes: Takes::Bool, default: "false", help: "log everything: --log-level debug" },
                Flag {
                    name: "log-level",
                    takes: Takes::Value("LEVEL"),
                    default: "info",
                    help: "what is logged: error, warn, info (changes) or debug; the more serious always",
                },
                Flag {
                    name: "log-format",
                    takes: Takes::Value("text|json"),
                    default: "text",
                    help: "how log lines on standard error look",
                },
                Flag { name: "version", takes: Takes::Bool, default: "false", help: "print the version and exit" },
                Flag { name: "help", takes: Takes::Bool, default: "false", help: "print this help and exit" },
            ],
        },
    ],
    operands_max: 0,
    footer: "\
Examples:
  rancher-desktop-guestagent -docker --sink stdout:        see what it would tell a host
  rancher-desktop-guestagent -docker -privilegedService    as Rancher Desktop starts it
  rancher-desktop-guestagent -kubernetes -iptables=false --sink stdout: -kubeconfig ~/.kube/config
                                                           the Services of that cluster
  rancher-desktop-guestagent -iptables                     listeners for what NAT rules publish,
                                                           which WSL forwards
  rancher-desktop-guestagent -docker                       as today's Rancher Desktop starts it:
                                                           host-switch and wsl-proxy
  rancher-desktop-guestagent -docker --sink vsock://2      in a QEMU or Firecracker guest whose host
                                                           runs rancher-desktop-hostagent

Exit codes: 0 stopped by a signal, 1 could not start, 2 wrong flags, environment or rules file.
",
};
