//! Tokens of logins: random, in memory only, and gone some minutes after their last use.
//!
//! A restart forgets them all; clients log in again when they hear `invalid auth token`, as they do
//! with etcd after some minutes.

use std::collections::HashMap;
use std::time::Instant;

use rand::distr::{Alphabetic, SampleString as _};

use super::super::limits;

/// Letters of a token.
const LENGTH: usize = 32;

#[derive(Debug)]
struct Token {
    user: String,
    /// Revision of the users and roles at which the password was checked.
    revision: u64,
    deadline: Instant,
}

/// All tokens that were given.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    tokens: HashMap<String, Token>,
}

impl Tokens {
    /// Gives a token.
    pub(crate) fn give(&mut self, user: &str, revision: u64, now: Instant) -> String {
        self.tokens.retain(|_, token| token.deadline > now);
        if self.tokens.len() >= limits::AUTH_TOKENS
            && let Some(oldest) = self.tokens.iter().min_by_key(|(_, token)| token.deadline)
        {
            let oldest = oldest.0.clone();
            self.tokens.remove(&oldest);
        }
        // etcd's tokens have a number behind a point, and its tools may look for it. The default
        // generator of the crate is a cryptographic one.
        let text = format!("{}.{revision}", Alphabetic.sample_string(&mut rand::rng(), LENGTH));
        let deadline = now + limits::AUTH_TOKEN_TTL;
        self.tokens.insert(text.clone(), Token { user: user.to_owned(), revision, deadline });
        text
    }

    /// Whose token it is, and since when; using it keeps it.
    pub(crate) fn find(&mut self, text: &str, now: Instant) -> Option<(String, u64)> {
        let token = self.tokens.get_mut(text).filter(|token| token.deadline > now)?;
        token.deadline = now + limits::AUTH_TOKEN_TTL;
        Some((token.user.clone(), token.revision))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_lives_while_it_is_used() {
        let mut tokens = Tokens::default();
        let start = Instant::now();
        let almost = limits::AUTH_TOKEN_TTL - Duration::from_secs(1);
        let text = tokens.give("h1", 7, start);
        assert_eq!(tokens.find(&text, start + almost), Some(("h1".to_owned(), 7)));
        assert!(tokens.find(&text, start + almost * 2).is_some());
        assert!(tokens.find(&text, start + almost * 4).is_none());
        assert!(tokens.find("other.7", start).is_none());
    }

    #[test]
    fn their_number_is_bounded_and_the_oldest_goes_first() {
        let mut tokens = Tokens::default();
        let start = Instant::now();
        let first = tokens.give("h1", 1, start);
        let second = tokens.give("h1", 1, start + Duration::from_millis(1));
        let now = start + Duration::from_millis(2);
        for _ in 0..limits::AUTH_TOKENS - 1 {
            tokens.give("h1", 1, now);
        }
        assert!(tokens.find(&first, now).is_none() && tokens.find(&second, now).is_some());
        assert_eq!(tokens.tokens.len(), limits::AUTH_TOKENS);
    }
}
