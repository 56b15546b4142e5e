//! The messages of joining: one small gRPC service beside etcd's on the store's port.

use prost::Message;

/// Path of the call that takes a token and gives a certificate.
pub(crate) const JOIN: &str = "/skybridge.v1.Join/Join";
/// Path of the call that gives a host that has a certificate the next one.
pub(crate) const RENEW: &str = "/skybridge.v1.Join/Renew";

/// Largest message of this service in bytes.
pub(crate) const MESSAGE_MAX: usize = 64 * 1024;

/// A host asks to be let in.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JoinRequest {
    /// Of the token.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) id: Vec<u8>,
    /// Of the token.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) secret: Vec<u8>,
    /// The host's name.
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    /// A PKCS #10 request in DER, signed by the host's key.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) request: Vec<u8>,
}

/// A host asks for its next certificate.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RenewRequest {
    /// A PKCS #10 request in DER, signed by the host's new key.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) request: Vec<u8>,
}

/// What a host needs to use the store.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Admitted {
    /// Its certificate, PEM.
    #[prost(string, tag = "1")]
    pub(crate) certificate: String,
    /// The authority's certificate, PEM.
    #[prost(string, tag = "2")]
    pub(crate) authority: String,
    /// URLs of the store.
    #[prost(string, repeated, tag = "3")]
    pub(crate) endpoints: Vec<String>,
    /// In front of the store's keys.
    #[prost(string, tag = "4")]
    pub(crate) prefix: String,
}
