//! The modules of one crate, and which of those that stand beside one another use which.

use super::paths::{self, Named};
use crate::code;
use std::collections::{BTreeMap, BTreeSet};

/// A module by the words of its path from the crate's root.
type Module = Vec<String>;

/// Modules of one folder, with the modules beside them that each uses, and a file that shows it.
pub(super) type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// A crate's files, by module. The root may have two: of a library and of a program.
#[derive(Default)]
pub(super) struct Tree {
    files: Vec<(Module, String, Vec<Named>)>,
    modules: BTreeSet<Module>,
    /// Imports of each module: the name there, with the path from the root that it stands for.
    imports: BTreeMap<(Module, String), Module>,
}

impl Tree {
    /// Reads files that have names from the crate's `src` on. Programs in `bin` have no modules and are left out.
    pub(super) fn of<'a>(sources: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut files, mut tests) = (Vec::new(), Vec::new());
        for (name, text) in sources.filter(|(name, _)| !name.starts_with("bin/")) {
            let module = module_of(name);
            let (code, names) = code::without_tests(text);
            tests.extend(names.into_iter().map(|name| below(&module, &name)));
            files.push((module, name.to_owned(), paths::paths(&code)));
        }
        files.retain(|(module, ..)| !tests.iter().any(|test| module.starts_with(test)));
        let modules = files.iter().map(|(module, ..)| module.clone()).collect();
        let mut tree = Self { files, modules, imports: BTreeMap::new() };
        tree.imports = tree.files.iter().flat_map(|(module, _, paths)| tree.imports_of(module, paths)).collect();
        tree
    }

    /// Files that import all of a module, which does not say what they use.
    pub(super) fn globs(&self) -> impl Iterator<Item = &str> {
        let is_glob = |module, named: &Named| {
            named.words.last().is_some_and(|word| word == "*") && self.absolute(module, &named.words).is_some()
        };
        let files =
            self.files.iter().filter(move |(module, _, paths)| paths.iter().any(|named| is_glob(module, named)));
        files.map(|(_, file, _)| file.as_str())
    }

    /// Uses among the modules of each folder. What a module uses of the folder's own, and the folder of a module, is no
    /// use between modules that stand beside one another.
    pub(super) fn uses(&self) -> BTreeMap<Module, Uses> {
        let mut folders: BTreeMap<Module, Uses> = BTreeMap::new();
        for (module, file, paths) in &self.files {
            for to in paths.iter().filter_map(|named| self.absolute(module, &named.words)) {
                let to = self.owner(&to, self.files.len());
                let depth = module.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(user), Some(used)) = (module.get(depth), to.get(depth)) {
                    let uses = folders.entry(module[..depth].to_vec()).or_default().entry(user.clone()).or_default();
                    uses.entry(used.clone()).or_insert_with(|| file.clone());
                }
            }
        }
        folders
    }

    fn imports_of(&self, module: &Module, paths: &[Named]) -> Vec<((Module, String), Module)> {
        let import = |named: &Named| {
            let name = named.import.clone()?;
            Some(((module.clone(), name), self.absolute(module, &named.words)?))
        };
        paths.iter().filter_map(import).collect()
    }

    /// A path from the root, of one that is written in a module; `None` if it leads out of the crate.
    fn absolute(&self, module: &Module, words: &[String]) -> Option<Module> {
        let (head, mut rest) = words.split_first()?;
        let mut path = module.clone();
        match head.as_str() {
            "crate" => path.clear(),
            "self" => {}
            "super" => drop(path.pop()?),
            child if self.modules.contains(&below(module, child)) => path.push(child.to_owned()),
            _ => return None,
        }
        while let Some((_, behind)) = rest.split_first().filter(|(head, _)| *head == "super") {
            path.pop()?;
            rest = behind;
        }
        path.extend_from_slice(rest);
        Some(path)
    }

    /// The module that has what a path names: exports are followed to where they come from, in so many steps at most.
    fn owner(&self, path: &[String], steps: usize) -> Module {
        let mut module = Module::new();
        for (at, word) in path.iter().enumerate() {
            let inner = below(&module, word);
            if !self.modules.contains(&inner) {
                return match self.imports.get(&(module.clone(), word.clone())) {
                    Some(origin) if steps > 0 && origin[..] != path[..=at] => {
                        self.owner(&[origin, &path[at + 1..]].concat(), steps - 1)
                    }
                    _ => module,
                };
            }
            module = inner;
        }
        module
    }
}

fn below(module: &[String], name: &str) -> Module {
    [module, &[name.to_owned()]].concat()
}

fn module_of(file: &str) -> Module {
    match file.trim_end_matches(".rs") {
        "lib" | "main" => Module::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(files: &[(&str, &str)]) -> Vec<String> {
        let folders = Tree::of(files.iter().copied()).uses();
        let show = |folder: &Module, uses: &Uses| -> Vec<String> {
            let pairs = uses.iter().flat_map(|(user, used)| used.keys().map(move |used| (user, used)));
            pairs.map(|(user, used)| format!("{}: {user} {used}", folder.join("."))).collect()
        };
        folders.iter().flat_map(|(folder, uses)| show(folder, uses)).collect()
    }

    #[test]
    fn uses_are_counted_between_modules_that_stand_beside_one_another() {
        let files = [
            ("lib.rs", "use a::b::X;"),
            ("a.rs", "use self::b::Y; use crate::d::Z;"),
            ("a/b.rs", "use super::{Own, c::C};\nfn f() { super::super::d::f() }"),
            ("a/c.rs", "use crate::a::Own;"),
            ("d.rs", "use std::a; use crate::Root;"),
        ];
        assert_eq!(shown(&files), [": a d", "a: b c"]);
    }

    #[test]
    fn an_export_is_its_modules() {
        let files = [
            ("lib.rs", "pub use a::Thing as Named;\npub use Named as Again;"),
            ("a.rs", "pub use self::inner::Thing;"),
            ("a/inner.rs", ""),
            ("a/user.rs", "use super::Thing;"),
            ("b.rs", "use crate::Named;"),
        ];
        assert_eq!(shown(&files), [": b a", "a: user inner"]);
    }

    #[test]
    fn modules_of_tests_alone_do_not_count() {
        let files = [
            ("lib.rs", "mod a;\n#[cfg(test)]\nmod bench;\n"),
            ("a.rs", "#[cfg(test)]\nuse crate::b;\n"),
            ("bench/deep.rs", "use crate::a;"),
            ("bench.rs", "use crate::a;"),
            ("bin/tool.rs", "use crate::a;"),
            ("b.rs", "use crate::a;"),
        ];
        assert_eq!(shown(&files), [": b a"]);
    }
}
