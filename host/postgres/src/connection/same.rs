//! Whether two connections lead to one database.
//!
//! Who connects, with which password and which options, does not matter; nor how the host is spelled. A server that can
//! be asked tells it better (its identity); this is for when it cannot, as on the day everything is lost.

use super::Connection;
use super::reach::Place;
use std::net::{IpAddr, SocketAddr};
use tokio::net::lookup_host;

/// A place, looked up.
struct Spot {
    place: Place,
    addresses: Vec<SocketAddr>,
}

impl Connection {
    /// Whether both lead to the same database: one name, at a place that both name. Host names are looked up; where they
    /// have no address now they are compared as they are written. A unix socket and the loopback address are one server
    /// when they have one port.
    pub async fn same_database(&self, other: &Connection) -> bool {
        if self.database() != other.database() {
            return false;
        }
        let (ours, theirs) = (self.spots().await, other.spots().await);
        ours.iter().any(|a| theirs.iter().any(|b| a.is(b)))
    }

    async fn spots(&self) -> Vec<Spot> {
        let mut spots = Vec::new();
        // Both were read once already when the connection was made.
        let (Ok(places), Ok(timing)) = (self.places(), self.timing()) else {
            return spots;
        };
        for place in places {
            let addresses = match &place {
                Place::Socket(_) => Vec::new(),
                Place::Host {
                    address: Some(address),
                    port,
                    ..
                } => vec![SocketAddr::new(*address, *port)],
                Place::Host { name, port, .. } => {
                    match tokio::time::timeout(timing.connect, lookup_host((name.as_str(), *port))).await {
                        Ok(Ok(found)) => found.collect(),
                        // Not known now: its name must do.
                        Ok(Err(_)) | Err(_) => Vec::new(),
                    }
                }
            };
            spots.push(Spot { place, addresses });
        }
        spots
    }
}

impl Spot {
    fn is(&self, other: &Spot) -> bool {
        match (&self.place, &other.place) {
            (Place::Socket(a), Place::Socket(b)) => a == b,
            (Place::Socket(socket), Place::Host { .. }) => other.beside(socket),
            (Place::Host { .. }, Place::Socket(socket)) => self.beside(socket),
            (Place::Host { name: a, port: p, .. }, Place::Host { name: b, port: q, .. }) => {
                (a.eq_ignore_ascii_case(b) && p == q) || self.addresses.iter().any(|a| other.addresses.contains(a))
            }
        }
    }

    /// Whether the server of a unix socket listens here: on this machine, with the port its socket is named after.
    fn beside(&self, socket: &std::path::Path) -> bool {
        let port = socket.extension().and_then(|port| port.to_str());
        self.addresses
            .iter()
            .any(|a| loopback(a.ip()) && port == Some(a.port().to_string().as_str()))
    }
}

fn loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_database_whoever_connects_and_however_its_host_is_spelled() {
        let same = async |a: &str, b: &str| {
            let (a, b) = (Connection::parse(a).unwrap(), Connection::parse(b).unwrap());
            let (one, two) = (a.same_database(&b).await, b.same_database(&a).await);
            assert_eq!(one, two, "{a} {b}");
            one
        };
        let ours = "postgresql://synapse_user:p@127.0.0.1:5433/synapse";
        for other in [
            "postgresql://reader:q@127.0.0.1:5433/synapse?connect_timeout=3",
            "postgresql://reader@localhost:5433/synapse",
            "host=/tmp port=5433 user=reader dbname=synapse",
            "host=10.255.255.1,localhost port=5432,5433 user=reader dbname=synapse",
            "host=db.invalid hostaddr=127.0.0.1 port=5433 user=reader dbname=synapse",
        ] {
            assert!(same(ours, other).await, "{other}");
        }
        for other in [
            "postgresql://synapse_user:p@127.0.0.1:5434/synapse",
            "postgresql://synapse_user:p@127.0.0.1:5433/synapse2",
            "postgresql://synapse_user:p@127.0.0.2:5433/synapse",
            "host=/tmp port=5434 user=synapse_user dbname=synapse",
        ] {
            assert!(!same(ours, other).await, "{other}");
        }
        // A name nobody knows now is still a name.
        let lost = "postgresql://a@Gone.invalid/x";
        assert!(same(lost, "postgresql://b@gone.invalid/x").await);
        assert!(!same(lost, "postgresql://b@lost.invalid/x").await);
        // Sockets of two servers may have one port, in directories of their own.
        assert!(!same("host=/cloudsql/one dbname=x", "host=/cloudsql/two dbname=x").await);
    }
}
