//! What a lab's director says when the requests are done, and how people get to read it.

use std::io;

use super::{CONNECTIONS_SHOWN, frames, section};
use crate::cli::client::Client;
use crate::cli::list;
use crate::config::command::{
    AccountRow, ConnRow, Listing, MasqueradedRow, Query, Reply, Request, ServiceRow,
};
use crate::config::ipvsadm::{Columns, List, What as Shown};
use crate::config::words::NumbersOnly;
use crate::lab::Lab;

/// What the director says when the requests are done.
pub(super) struct Seen {
    pub table_size: u32,
    pub services: Vec<ServiceRow>,
    pub connections: Vec<ConnRow>,
    pub masqueraded: Vec<MasqueradedRow>,
    /// Connections, packets in and out, bytes in and out, that the workers have counted.
    pub totals: [u64; 5],
    pub account: AccountRow,
    pub story: Vec<String>,
}

impl Seen {
    pub fn ask(lab: &Lab) -> io::Result<Seen> {
        let mut client = Client::connect(&lab.control().to_string_lossy())?;
        let mut ask = |query| match client.ask(&Request::Ask(query)) {
            Ok(Reply::Listing(listing)) => Ok(listing),
            Ok(other) => Err(io::Error::other(format!("the director said {other:?}"))),
            Err(error) => Err(io::Error::other(error)),
        };
        let (connections, masqueraded, services, account) = (
            ask(Query::Connections)?,
            ask(Query::Masqueraded)?,
            ask(Query::Services(None))?,
            ask(Query::Account)?,
        );
        let (Listing::Connections(connections), Listing::Masqueraded(masqueraded)) =
            (connections, masqueraded)
        else {
            return Err(io::Error::other(
                "the director does not tell its connections",
            ));
        };
        let Listing::Services {
            table_size,
            services,
        } = services
        else {
            return Err(io::Error::other("the director does not tell its services"));
        };
        let Listing::Account(mut account) = account else {
            return Err(io::Error::other("the director does not tell its account"));
        };
        let Listing::Totals { workers, .. } = ask(Query::Totals)? else {
            return Err(io::Error::other("the director does not tell its totals"));
        };
        let sum = |sum: [u64; 5], more: &[u64; 5]| std::array::from_fn(|at| sum[at] + more[at]);
        let totals = workers.iter().fold([0; 5], sum);
        let story = std::mem::take(&mut account.story);
        Ok(Seen {
            table_size,
            services,
            connections,
            masqueraded,
            totals,
            account,
            story,
        })
    }

    /// Was every frame accounted for, by every worker?
    pub fn balances(&self) -> bool {
        self.account.balances && self.account.silent.is_empty()
    }

    pub fn text(&self) -> String {
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_string).collect() };
        let asked = |what| List {
            what,
            numeric: true,
            exact: false,
            sorted: true,
            columns: Columns::Plain,
        };
        let all = asked(Shown::Services(None));
        let services = list::services(self.table_size, &self.services, &all, &NumbersOnly);
        let first = &self.connections[..self.connections.len().min(CONNECTIONS_SHOWN)];
        let listing = list::connections(first, &asked(Shown::Connections), &NumbersOnly);
        let mut connections = lines(&listing);
        if self.connections.len() > CONNECTIONS_SHOWN {
            let more = self.connections.len() - CONNECTIONS_SHOWN;
            connections.push(format!("and {more} more"));
        }
        let masqueraded =
            list::masqueraded(&self.masqueraded, &asked(Shown::Masqueraded), &NumbersOnly);
        let masqueraded = match self.masqueraded.is_empty() {
            true => String::new(),
            false => section(
                "The calls from inside, as ulvs adm -L --masqueraded -n prints them",
                &lines(&masqueraded),
            ),
        };
        section("The first connection, packet by packet", &self.story)
            + &section(
                "The services, as ipvsadm -L -n prints them",
                &lines(&services),
            )
            + &section(
                "The connections, as ipvsadm -L -n -c prints them",
                &connections,
            )
            + &masqueraded
            + &frames(&self.account)
    }
}
