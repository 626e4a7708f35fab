//! `holdfast destroy`: removes a cluster that `up` made.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};
use holdfast_storage::DirectoryLock;

use crate::args::DestroyArgs;
use crate::up::layout::Layout;

pub(crate) fn run(args: &DestroyArgs) -> Result<()> {
    let dir = args.dir.canonicalize().with_context(|| format!("cannot find {}", args.dir.display()))?;
    let layout = Layout::new(dir.clone());
    let Some(record) = layout.read()? else {
        bail!("{} is empty: there is no cluster in it", dir.display());
    };
    // Held until the end, so that nobody starts what is being removed.
    let _lock = DirectoryLock::acquire(&dir).context("the cluster is running; stop it first")?;
    let name = record.cluster.map_or_else(|| "unfinished cluster".to_owned(), |cluster| format!("cluster {cluster}"));
    if !args.yes && !confirmed(&format!("Remove {name} in {} with all its data?", dir.display()))? {
        bail!("nothing was removed");
    }
    if layout.remove_contents()? {
        std::fs::remove_dir(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        println!("{name} is removed");
    } else {
        println!("{name} is removed; {} holds other files and stays", dir.display());
    }
    Ok(())
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("destroying needs an answer from a terminal, or --yes");
    }
    print!("{question} Type 'yes': ");
    std::io::stdout().flush().context("terminal")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("terminal")?;
    Ok(answer.trim() == "yes")
}
