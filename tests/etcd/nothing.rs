//! Nothing: the manifests beside this file are there for what they fetch.
