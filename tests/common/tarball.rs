//! Members of a tar as Go's `archive/tar` writes them when kit uses it, byte by byte.

/// One member as Go's tar writer writes it: USTAR if it fits, else PAX.
pub fn member(tar: &mut Vec<u8>, name: &[u8], kind: u8, mode: u32, content: &[u8]) {
    // 11 octal digits.
    let size_fits = content.len() < 1 << 33;
    let (prefix, suffix) = match split(name) {
        Some(parts) => parts,
        None if name.is_ascii() && name.len() <= 100 => (&[][..], name),
        None => {
            pax(tar, name, (!size_fits).then_some(content.len()));
            return plain(tar, &[], &ascii(name), kind, mode, content);
        }
    };
    if !size_fits {
        pax(tar, name, Some(content.len()));
    }
    plain(tar, prefix, suffix, kind, mode, content);
}

fn plain(tar: &mut Vec<u8>, prefix: &[u8], name: &[u8], kind: u8, mode: u32, content: &[u8]) {
    let mut block = [0; 512];
    text(&mut block[0..100], name);
    octal(&mut block[100..108], u64::from(mode & 0o7777));
    octal(&mut block[108..116], 1000);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], if content.len() < 1 << 33 { content.len() as u64 } else { 0 });
    octal(&mut block[136..148], 0);
    block[156] = kind;
    octal(&mut block[329..337], 0);
    octal(&mut block[337..345], 0);
    text(&mut block[345..500], prefix);
    finish(tar, block, content);
}

fn pax(tar: &mut Vec<u8>, name: &[u8], size: Option<usize>) {
    let mut records = Vec::new();
    // Without a long name there is nothing but the size to say. Go sorts by key: path, size.
    if !(name.is_ascii() && (name.len() <= 100 || split(name).is_some())) {
        records.extend(record(b"path", name));
    }
    if let Some(size) = size {
        records.extend(record(b"size", size.to_string().as_bytes()));
    }
    let (folder, file) = match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (&[][..], name),
    };
    let mut header_name = Vec::new();
    for part in [folder, b"PaxHeaders.0", file] {
        if !header_name.is_empty() {
            header_name.push(b'/');
        }
        header_name.extend_from_slice(part);
    }
    let mut header_name = ascii(&header_name);
    header_name.truncate(100);
    while header_name.last() == Some(&b'/') {
        header_name.pop();
    }
    let mut block = [0; 512];
    text(&mut block[0..100], &header_name);
    octal(&mut block[100..108], 0);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], records.len() as u64);
    octal(&mut block[136..148], 0);
    block[156] = b'x';
    finish(tar, block, &records);
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    // The length counts itself.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn finish(tar: &mut Vec<u8>, mut block: [u8; 512], content: &[u8]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    tar.extend_from_slice(&block);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Where USTAR can split a long name: Go looks at the last slash within the prefix's length only.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 || !name.is_ascii() {
        return None;
    }
    let slash = name[..name.len().min(156)].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, suffix) = (&name[..slash], &name[slash + 1..]);
    (!prefix.is_empty() && prefix.len() <= 155 && !suffix.is_empty() && suffix.len() <= 100).then_some((prefix, suffix))
}

/// What Go leaves of a name in a field that is ASCII only.
fn ascii(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(u8::is_ascii).collect()
}

fn text(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
    // A cut name must not look like a folder's to old readers.
    if value.len() > field.len() && field.last() == Some(&b'/') {
        let end = field.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        field[end] = 0;
    }
}

/// Zero-padded octal and a NUL.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    field[width] = 0;
}
