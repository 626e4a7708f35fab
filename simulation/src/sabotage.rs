//! The rules that can be broken one at a time, each by the name that `docs/TESTING.md` lists.

use holdfast_client::Sabotage as Client;
use holdfast_consensus::Sabotage as Consensus;
use holdfast_datanode::Sabotage as Datanode;
use holdfast_metanode::Sabotage as Metanode;
use holdfast_volmgr::Sabotage as Volmgr;

/// A rule that a run breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// All rules are kept.
    #[default]
    None,
    /// One of consensus, in all logs.
    Consensus(Consensus),
    /// One of the metanodes.
    Metanode(Metanode),
    /// One of the datanodes.
    Datanode(Datanode),
    /// One of the volume manager.
    Volmgr(Volmgr),
    /// One of the clients.
    Client(Client),
}

impl Sabotage {
    /// Its value in the options of logs.
    pub(crate) fn consensus(self) -> Consensus {
        if let Self::Consensus(sabotage) = self { sabotage } else { Consensus::None }
    }

    /// Its value in a metanode's options.
    pub(crate) fn metanode(self) -> Metanode {
        if let Self::Metanode(sabotage) = self { sabotage } else { Metanode::None }
    }

    /// Its value in a datanode's options.
    pub(crate) fn datanode(self) -> Datanode {
        if let Self::Datanode(sabotage) = self { sabotage } else { Datanode::None }
    }

    /// Its value in the volume manager's options.
    pub(crate) fn volmgr(self) -> Volmgr {
        if let Self::Volmgr(sabotage) = self { sabotage } else { Volmgr::None }
    }

    /// Its value in a mount's settings.
    pub(crate) fn client(self) -> Client {
        if let Self::Client(sabotage) = self { sabotage } else { Client::None }
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let consensus = Consensus::ALL.into_iter().map(Self::Consensus);
        let metanode = Metanode::ALL.into_iter().map(Self::Metanode);
        let datanode = Datanode::ALL.into_iter().map(Self::Datanode);
        let volmgr = Volmgr::ALL.into_iter().map(Self::Volmgr);
        let client = Client::ALL.into_iter().map(Self::Client);
        consensus.chain(metanode).chain(datanode).chain(volmgr).chain(client).collect()
    }

    /// The names of all.
    #[must_use]
    pub fn names() -> Vec<String> {
        Self::all().into_iter().map(Self::name).collect()
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Consensus(sabotage) => format!("consensus-{sabotage:?}"),
            Self::Metanode(sabotage) => format!("metanode-{sabotage:?}"),
            Self::Datanode(sabotage) => format!("datanode-{sabotage:?}"),
            Self::Volmgr(sabotage) => format!("volmgr-{sabotage:?}"),
            Self::Client(sabotage) => format!("client-{sabotage:?}"),
        }
    }

    /// The sabotage of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|sabotage| sabotage.name() == name)
    }
}
