//! `kitfs completions` and `kitfs man`: both made from the definition of the command line.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::Cli;

/// The script that completes command lines of `kitfs` in `shell`.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "kitfs", &mut script);
    script
}

/// The manual page: one for all commands, because that is what `man kitfs` is asked for.
pub(super) fn page() -> io::Result<Vec<u8>> {
    let mut command = visible();
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    for command in verbs(&command) {
        let mut heading = Roff::new();
        heading.control("SH", [command.get_bin_name().unwrap_or_default().to_uppercase().as_str()]);
        heading.text([roman(command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default())]);
        heading.to_writer(&mut page)?;
        let man = Man::new(command.clone());
        let mut sections = Vec::new();
        man.render_synopsis_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        // They are sections of the page by themselves, and parts of a section here.
        page.extend(String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ").into_bytes());
    }
    man.render_extra_section(&mut page)?;
    Ok(page)
}

/// The commands that do something, in the place of those that only hold others.
fn verbs(command: &Command) -> Vec<&Command> {
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    commands.flat_map(|command| if command.has_subcommands() { verbs(command) } else { vec![command] }).collect()
}

/// The command line without the commands that only kitfs itself uses.
fn visible() -> Command {
    let whole = Cli::command();
    let shown: Vec<Command> = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut command = Command::new("kitfs").version(env!("CARGO_PKG_VERSION")).max_term_width(120).subcommands(shown);
    if let Some(about) = whole.get_about() {
        command = command.about(about.clone());
    }
    if let Some(after) = whole.get_after_help() {
        command = command.after_help(after.clone());
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_name_every_option_and_no_hidden_command() {
        let page = String::from_utf8(page().expect("memory")).expect("text");
        let scripts = [Shell::Bash, Shell::Zsh, Shell::Fish].map(|shell| String::from_utf8(completions(shell)).expect("text"));
        for text in scripts.iter().chain([&page.replace("\\-", "-")]) {
            for word in ["trust-user-cache", "prefetch", "repair", "umount", "ca-cert"] {
                assert!(text.contains(word), "{word}");
            }
            assert!(!text.contains("__worker") && !text.contains("__supervisor"));
        }
        assert!(page.starts_with(".ie") || page.contains(".TH"), "{page}");
        let plain = page.replace("\\-", "-");
        assert!(["oci:DIR", "oci-archive:FILE", "kitops:REF"].iter().all(|form| plain.contains(form)), "{page}");
        assert!(page.contains("Exit codes") && page.contains("KITFS MOUNT") && page.contains("KITFS POLICY CHECK"), "{page}");
    }
}
