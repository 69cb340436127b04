//! The fixed points of vtunnel, between a guest and its host over AF_VSOCK. Source: Rancher Desktop 1.9 `src/go/vtunnel`.

/// The host's vsock port that takes PortMapping documents.
pub const DOCUMENTS_PORT: u32 = 17381;

/// The guest's vsock port that answers the handshake.
pub const HANDSHAKE_PORT: u32 = 17382;

/// What it answers with, and nothing else: by this the host tells its guest from others.
pub const MAGIC: &[u8; 50] = b"github.com/rancher-sandbox/rancher-desktop-vtunnel";
