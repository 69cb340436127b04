//! The command lines of the commands: names, flags and help. What they do is in `cli`, in the files of their names.
//!
//! The list is also what `--help`, completions and the man page are made of.

use crate::flags::{Command, Flag, Section, Takes, Usage};

/// Every command, in the order of the help.
pub static COMMANDS: [Command; 9] = [
    Command { name: "status", about: "how the agent is: sources, sinks, rules, counts", usage: &STATUS },
    Command { name: "ports", about: "every forward, and why what is not forwarded is not", usage: &PORTS },
    Command { name: "watch", about: "changes as they happen", usage: &WATCH },
    Command { name: "wait", about: "until a port is forwarded, or gone", usage: &WAIT },
    Command { name: "explain", about: "who publishes a port, what was decided, and what to do", usage: &EXPLAIN },
    Command { name: "reset", about: "withdraw everything and start over", usage: &RESET },
    Command { name: "doctor", about: "check this VM, and the agent if it runs", usage: &DOCTOR },
    Command { name: "completions", about: "a shell's completions of all this", usage: &COMPLETIONS },
    Command { name: "help", about: "the help of a command", usage: &HELP_USAGE },
];

const JSON: Flag =
    Flag { name: "json", takes: Takes::Bool, default: "false", help: "print the agent's documents, one a line" };
const SOCKET: Flag = Flag {
    name: "socket",
    takes: Takes::Value("PATH"),
    default: "",
    help: "where the agent answers (default: where an agent of this user does)",
};
const HELP: Flag = Flag { name: "help", takes: Takes::Bool, default: "false", help: "print this help and exit" };
const PORT: Flag = Flag {
    name: "port",
    takes: Takes::Value("N[/PROTO]"),
    default: "",
    help: "this port on the host, such as 8080 or 53/udp",
};
const PROTOCOL: Flag = Flag { name: "protocol", takes: Takes::Value("PROTO"), default: "", help: "tcp or udp" };
const SOURCE: Flag = Flag {
    name: "source",
    takes: Takes::Value("NAME"),
    default: "",
    help: "seen by: docker, containerd, nat, kubernetes, sockets, agent",
};
const SINK: Flag = Flag {
    name: "sink",
    takes: Takes::Value("NAME"),
    default: "",
    help: "at this sink: its kind (host-switch), its name, or its address",
};
const HOST_IP: Flag =
    Flag { name: "host-ip", takes: Takes::Value("IP"), default: "", help: "bound on this address of the host" };
const STATE: Flag = Flag {
    name: "state",
    takes: Takes::Value("STATE"),
    default: "",
    help: "pending, forwarding, conflict, denied, failed, left-out, or in watch withdrawn",
};

static STATUS: Usage = Usage {
    synopsis: "rancher-desktop-guestagent status [flags]",
    about: "Says whether the agent is well, and why not.",
    commands: &[],
    sections: &[Section {
        title: "Flags",
        flags: &[
            JSON,
            Flag {
                name: "prometheus",
                takes: Takes::Bool,
                default: "false",
                help: "print it as metrics, in the text format of Prometheus",
            },
            SOCKET,
            HELP,
        ],
    }],
    operands_max: 0,
    footer: "\
Examples:
  rancher-desktop-guestagent status
  rancher-desktop-guestagent status --json | jq .problems

Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 degraded or down, 4 no agent answers.
",
};

static PORTS: Usage = Usage {
    synopsis: "rancher-desktop-guestagent ports [flags]",
    about: "Shows each forward at each sink, what is denied, and what a sink cannot carry.",
    commands: &[],
    sections: &[
        Section { title: "Only those that match", flags: &[PORT, PROTOCOL, SOURCE, SINK, STATE, HOST_IP] },
        Section { title: "Flags", flags: &[JSON, SOCKET, HELP] },
    ],
    operands_max: 0,
    footer: "\
Examples:
  rancher-desktop-guestagent ports
  rancher-desktop-guestagent ports --state conflict
  rancher-desktop-guestagent ports --json --sink host-switch

Exit codes: 0 ok, also where there are none; 1 failed, 2 wrong usage, 4 no agent answers.
",
};

static WATCH: Usage = Usage {
    synopsis: "rancher-desktop-guestagent watch [flags]",
    about: "Prints a line for each change, until it is interrupted or the agent ends.",
    commands: &[],
    sections: &[
        Section { title: "Only those that match", flags: &[PORT, PROTOCOL, SOURCE, SINK, STATE, HOST_IP] },
        Section {
            title: "Flags",
            flags: &[
                Flag {
                    name: "replay",
                    takes: Takes::Bool,
                    default: "false",
                    help: "print first what there is already",
                },
                JSON,
                SOCKET,
                HELP,
            ],
        },
    ],
    operands_max: 0,
    footer: "\
Examples:
  rancher-desktop-guestagent watch --replay
  rancher-desktop-guestagent watch --json --port 8080

Exit codes: 0 nobody reads it any more, 1 the agent has ended, 2 wrong usage, 4 no agent answers.
",
};

static WAIT: Usage = Usage {
    synopsis: "rancher-desktop-guestagent wait --port N[/PROTO] [flags]",
    about: "Returns as soon as a forward of the port is in that state at a sink, and prints it. The agent may start later.",
    commands: &[],
    sections: &[Section {
        title: "Flags",
        flags: &[
            PORT,
            PROTOCOL,
            HOST_IP,
            SINK,
            SOURCE,
            Flag {
                name: "state",
                takes: Takes::Value("STATE"),
                default: "forwarding",
                help: "forwarding, conflict, denied, failed, pending, left-out, or withdrawn: nothing of it is left",
            },
            Flag {
                name: "timeout",
                takes: Takes::Value("DURATION"),
                default: "30s",
                help: "give up then: 500ms, 10s, 2m",
            },
            JSON,
            SOCKET,
            HELP,
        ],
    }],
    operands_max: 0,
    footer: "\
Examples:
  docker run -d -p 8080:80 nginx && rancher-desktop-guestagent wait --port 8080
  rancher-desktop-guestagent wait --port 8080/tcp --state withdrawn --timeout 5s

Exit codes: 0 it is so, 1 failed, 2 wrong usage, 4 no agent answers, 5 not in time.
",
};

static EXPLAIN: Usage = Usage {
    synopsis: "rancher-desktop-guestagent explain PORT[/PROTO] [flags]",
    about: "Says who publishes a port, what was decided, what each sink did, and what to do.",
    commands: &[],
    sections: &[Section { title: "Flags", flags: &[JSON, SOCKET, HELP] }],
    operands_max: 1,
    footer: "\
Examples:
  rancher-desktop-guestagent explain 8080
  rancher-desktop-guestagent explain 53/udp --json

Exit codes: 0 it is forwarded, 1 failed, 2 wrong usage, 3 nobody publishes it or it is forwarded
nowhere, 4 no agent answers.
",
};

static RESET: Usage = Usage {
    synopsis: "rancher-desktop-guestagent reset [flags]",
    about: "Withdraws everything that the agent announced, and starts over from what its sources see.",
    commands: &[],
    sections: &[Section {
        title: "Flags",
        flags: &[
            Flag {
                name: "timeout",
                takes: Takes::Value("DURATION"),
                default: "15s",
                help: "give up waiting for the answer then; the agent goes on",
            },
            JSON,
            SOCKET,
            HELP,
        ],
    }],
    operands_max: 0,
    footer: "\
Example:
  rancher-desktop-guestagent reset

Exit codes: 0 done, 1 failed, also where forwards could not be withdrawn; 2 wrong usage,
4 no agent answers, 5 not in time.
",
};

static DOCTOR: Usage = Usage {
    synopsis: "rancher-desktop-guestagent doctor [flags] [-- AGENT FLAGS]",
    about: "Checks what the agent needs of this VM, and the agent if it runs; says what to do where something is wrong. \
            With flags of the agent, checks what an agent with these would need.",
    commands: &[],
    sections: &[Section { title: "Flags", flags: &[JSON, SOCKET, HELP] }],
    operands_max: 256,
    footer: "\
Examples:
  rancher-desktop-guestagent doctor
  rancher-desktop-guestagent doctor -- -docker --sink http://192.168.127.1

Exit codes: 0 all is well, 1 failed, 2 wrong usage, 3 a check failed.
",
};

static COMPLETIONS: Usage = Usage {
    synopsis: "rancher-desktop-guestagent completions bash|zsh|fish",
    about: "Prints the completions of commands and flags for that shell.",
    commands: &[],
    sections: &[Section { title: "Flags", flags: &[HELP] }],
    operands_max: 1,
    footer: "\
Example:
  . <(rancher-desktop-guestagent completions bash)

Exit codes: 0 ok, 1 failed, 2 wrong usage.
",
};

static HELP_USAGE: Usage = Usage {
    synopsis: "rancher-desktop-guestagent help [COMMAND]",
    about: "Prints the help of a command, or of the agent.",
    commands: &[],
    sections: &[Section { title: "Flags", flags: &[HELP] }],
    operands_max: 1,
    footer: "\
Example:
  rancher-desktop-guestagent help wait

Exit codes: 0 ok, 1 failed, 2 wrong usage.
",
};
