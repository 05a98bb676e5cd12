//! Connections of a small server inside the control thread's event loop: at most so many, each with
//! a deadline for its peer, each found by the token it was registered with.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::Token;

/// How long a server waits after accept(2) failed: descriptors or memory ran out, and a moment
/// later somebody may have given some back.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Connections taken at a time, so that a storm of them leaves the loop time for the rest.
const ACCEPTS_PER_EVENT_MAX: usize = 64;

/// How taking new connections ended. The poll tells of new ones once (it is edge-triggered), so
/// whoever leaves some has to come back for them.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// No more are waiting.
    All,
    /// More may be waiting: register the listener again, which tells of them again.
    Some,
    /// The kernel gave none: try again after [`ACCEPT_RETRY`].
    Failed(io::Error),
}

/// Takes the connections that wait at a listener.
pub(crate) fn accept_waiting<S>(
    accept: impl Fn() -> io::Result<S>,
    mut take: impl FnMut(S),
) -> Accepted {
    for _ in 0..ACCEPTS_PER_EVENT_MAX {
        match accept() {
            Ok(stream) => take(stream),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Accepted::All,
                // accept(2): the peer has left already, or a signal came.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => return Accepted::Failed(error),
            },
        }
    }
    Accepted::Some
}

/// Names one connection for ever: a later connection in the same place has another serial number,
/// so that a late answer never reaches a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    place: usize,
    serial: u64,
}

/// The connections of one server.
#[derive(Debug)]
pub(crate) struct Connections<C> {
    first_token: usize,
    places: Vec<Option<Entry<C>>>,
    serial: u64,
}

#[derive(Debug)]
struct Entry<C> {
    serial: u64,
    /// When the connection is closed if its peer stays idle; none while the peer waits for us.
    deadline: Option<Instant>,
    connection: C,
}

impl<C> Connections<C> {
    /// Room for as many connections as there are tokens.
    pub(crate) fn new(tokens: Range<usize>) -> Connections<C> {
        let places = tokens.clone().map(|_| None).collect();
        Connections { first_token: tokens.start, places, serial: 0 }
    }

    /// The token for one more connection, if there is room.
    pub(crate) fn vacant(&self) -> Option<Token> {
        let place = self.places.iter().position(Option::is_none)?;
        Some(Token(self.first_token + place))
    }

    /// Keeps a connection that was registered with a vacant token.
    pub(crate) fn insert(&mut self, token: Token, connection: C, deadline: Instant) {
        self.serial += 1;
        let entry = Entry { serial: self.serial, deadline: Some(deadline), connection };
        let place = self.place(token).expect("the token came from vacant()");
        assert!(self.places[place].is_none(), "the token is vacant");
        self.places[place] = Some(entry);
    }

    fn place(&self, token: Token) -> Option<usize> {
        let place = token.0.checked_sub(self.first_token)?;
        (place < self.places.len()).then_some(place)
    }

    /// The name of the connection behind a token.
    pub(crate) fn id(&self, token: Token) -> Option<ConnectionId> {
        let place = self.place(token)?;
        let entry = self.places[place].as_ref()?;
        Some(ConnectionId { place, serial: entry.serial })
    }

    /// The token of a connection.
    pub(crate) fn token(&self, id: ConnectionId) -> Token {
        Token(self.first_token + id.place)
    }

    fn entry(&mut self, id: ConnectionId) -> Option<&mut Entry<C>> {
        let entry = self.places.get_mut(id.place)?.as_mut()?;
        (entry.serial == id.serial).then_some(entry)
    }

    /// The connection, unless it is closed.
    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut C> {
        Some(&mut self.entry(id)?.connection)
    }

    /// Sets until when the peer has to do its part; none: it waits for us.
    pub(crate) fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        if let Some(entry) = self.entry(id) {
            entry.deadline = deadline;
        }
    }

    /// Closes a connection by letting go of it: closing a descriptor takes it out of the poll.
    pub(crate) fn remove(&mut self, id: ConnectionId) {
        if self.entry(id).is_some() {
            self.places[id.place] = None;
        }
    }

    /// Closes the connections whose peers were too slow; returns how many.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        for place in &mut self.places {
            if place.as_ref().is_some_and(|entry| entry.deadline.is_some_and(|at| at <= now)) {
                *place = None;
                expired += 1;
            }
        }
        expired
    }

    /// When [`Connections::expire`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.places.iter().flatten().filter_map(|entry| entry.deadline).min()
    }

    /// Connections at present.
    pub(crate) fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_does_not_reach_the_next_connection_in_the_same_place() {
        let mut connections = Connections::new(10..11);
        let now = Instant::now();
        let token = connections.vacant().expect("room for one");
        connections.insert(token, "first", now);
        let first = connections.id(token).expect("it is there");
        assert_eq!(connections.vacant(), None);
        connections.remove(first);
        connections.insert(connections.vacant().expect("room again"), "second", now);
        let second = connections.id(token).expect("it is there");
        assert_eq!(connections.get(first), None);
        assert_eq!(connections.get(second), Some(&mut "second"));
        connections.remove(first);
        assert_eq!(connections.len(), 1, "removing the first again leaves the second");
    }

    #[test]
    fn only_connections_past_their_deadline_expire() {
        let mut connections = Connections::new(0..3);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        for (name, deadline) in [("slow", now), ("fast", later), ("waiting", now)] {
            connections.insert(connections.vacant().expect("room"), name, deadline);
        }
        let waiting = connections.id(Token(2)).expect("it is there");
        connections.set_deadline(waiting, None);
        assert_eq!(connections.next_deadline(), Some(now));
        assert_eq!(connections.expire(now), 1);
        assert_eq!(connections.id(Token(0)), None);
        assert_eq!(connections.next_deadline(), Some(later));
        assert_eq!(connections.expire(later), 1);
        assert_eq!(connections.len(), 1, "who waits for us is never late");
        assert_eq!(connections.id(Token(3)), None, "a token of somebody else");
    }
}
