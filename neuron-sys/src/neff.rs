//! The header of a NEFF, the file that `neuronx-cc` makes: 1024 bytes, then an archive.
//!
//! The layout is documented by the vendor; little-endian and without padding is our reading of it, to which the sizes
//! add up. Not public are: a magic number (the first field is the packager's version), which versions exist, what the
//! feature bits mean, and over which bytes the hash is taken. So a header can be checked for plausibility only, and
//! whoever stores a NEFF should keep a digest of the whole file beside it.

use sha2::{Digest, Sha256};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 1024;

/// Why some bytes are not a NEFF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NeffError {
    /// There is less than a header.
    #[error("not a NEFF: {0} bytes, and the header alone has {HEADER_SIZE}")]
    Short(usize),
    /// The header gives itself another size.
    #[error("not a NEFF: its header says that it has {0} bytes instead of {HEADER_SIZE}")]
    HeaderSize(u64),
    /// The file is longer or shorter than the header says.
    #[error("NEFF is damaged: {found} bytes follow the header, which announces {announced}")]
    DataSize {
        /// What the header says.
        announced: u64,
        /// What is there.
        found: u64,
    },
    /// A text field holds something else.
    #[error("not a NEFF: the field {field} is not printable text that ends with a NUL")]
    Text {
        /// The field.
        field: &'static str,
    },
    /// A text is too long for its field.
    #[error("{field} of {bytes} bytes does not fit its field")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The text's length.
        bytes: usize,
    },
}

/// What the hash in a header says about the archive. How the hash is chosen is not public; this reads it by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashCheck {
    /// It is the SHA-256 of the archive.
    Sha256,
    /// It is all zero.
    Absent,
    /// Only its first 16 bytes are used, as by an MD5; not checked.
    Short,
    /// It is something else: the archive is damaged, or the hash is over other bytes.
    Other,
}

/// A NEFF's header, field by field in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The packager's version, which also chooses the kind of hash.
    pub pkg_version: u64,
    /// Bytes after the header.
    pub data_size: u64,
    /// The format's version.
    pub neff_version_major: u64,
    /// The format's minor version.
    pub neff_version_minor: u64,
    /// The compiler's own version; at most 127 bytes.
    pub build_version: String,
    /// Cores that it needs.
    pub num_tpb: u32,
    /// SHA-256 or MD5 of the archive, see [`Header::check_hash`].
    pub hash: [u8; 32],
    /// Identifies the file.
    pub uuid: [u8; 16],
    /// A name for it; at most 255 bytes.
    pub name: String,
    /// Cores that were asked for.
    pub requested_tpb_count: u32,
    /// Cores for each node of the graph.
    pub tpb_per_node: [u8; 64],
    /// Features without which it cannot be run; their meaning is not public.
    pub feature_bits: u64,
    /// How many physical cores make a logical one; 0 in files from before there were logical cores.
    pub lnc_size: u32,
}

impl Header {
    /// A header for an archive made by this program rather than by the vendor's compiler: its hash is the archive's
    /// SHA-256, its UUID the beginning of that.
    pub fn for_data(name: &str, data: &[u8]) -> Self {
        let hash: [u8; 32] = Sha256::digest(data).into();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash[..16]);
        Self {
            pkg_version: 1,
            data_size: data.len() as u64,
            neff_version_major: 1,
            neff_version_minor: 0,
            build_version: String::new(),
            num_tpb: 1,
            hash,
            uuid,
            name: name.to_owned(),
            requested_tpb_count: 1,
            tpb_per_node: [0; 64],
            feature_bits: 0,
            lnc_size: 1,
        }
    }

    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// If the file is not a NEFF, or longer or shorter than its header says.
    pub fn parse(file: &[u8]) -> Result<Self, NeffError> {
        let mut fields = Fields(file.get(..HEADER_SIZE).ok_or(NeffError::Short(file.len()))?);
        let pkg_version = fields.u64();
        match fields.u64() {
            size if size == HEADER_SIZE as u64 => {}
            other => return Err(NeffError::HeaderSize(other)),
        }
        let data_size = fields.u64();
        let found = (file.len() - HEADER_SIZE) as u64;
        if data_size != found {
            return Err(NeffError::DataSize { announced: data_size, found });
        }
        Ok(Self {
            pkg_version,
            data_size,
            neff_version_major: fields.u64(),
            neff_version_minor: fields.u64(),
            build_version: text("neff_build_version", &fields.take::<128>())?,
            num_tpb: fields.u32(),
            hash: fields.take(),
            uuid: fields.take(),
            name: text("name", &fields.take::<256>())?,
            requested_tpb_count: fields.u32(),
            tpb_per_node: fields.take(),
            feature_bits: fields.u64(),
            lnc_size: fields.u32(),
        })
    }

    /// The header's bytes.
    ///
    /// # Errors
    /// If a text does not fit its field with the NUL after it, or would not be read back.
    pub fn write(&self) -> Result<[u8; HEADER_SIZE], NeffError> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE);
        bytes.extend(self.pkg_version.to_le_bytes());
        bytes.extend((HEADER_SIZE as u64).to_le_bytes());
        bytes.extend(self.data_size.to_le_bytes());
        bytes.extend(self.neff_version_major.to_le_bytes());
        bytes.extend(self.neff_version_minor.to_le_bytes());
        bytes.extend(field::<128>("neff_build_version", &self.build_version)?);
        bytes.extend(self.num_tpb.to_le_bytes());
        bytes.extend(self.hash);
        bytes.extend(self.uuid);
        bytes.extend(field::<256>("name", &self.name)?);
        bytes.extend(self.requested_tpb_count.to_le_bytes());
        bytes.extend(self.tpb_per_node);
        bytes.extend(self.feature_bits.to_le_bytes());
        bytes.extend(self.lnc_size.to_le_bytes());
        let mut header = [0; HEADER_SIZE];
        header[..bytes.len()].copy_from_slice(&bytes);
        Ok(header)
    }

    /// What the hash says about the archive, the bytes after the header.
    pub fn check_hash(&self, data: &[u8]) -> HashCheck {
        let (first, rest) = self.hash.split_at(16);
        let zero = |part: &[u8]| part.iter().all(|&byte| byte == 0);
        match (zero(first), zero(rest)) {
            (true, true) => HashCheck::Absent,
            (false, true) => HashCheck::Short,
            _ if self.hash == <[u8; 32]>::from(Sha256::digest(data)) => HashCheck::Sha256,
            _ => HashCheck::Other,
        }
    }
}

/// What is left of the header's bytes. `parse` takes 556 of 1024, so none of these can run out.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_at(N);
        self.0 = rest;
        let mut bytes = [0; N];
        bytes.copy_from_slice(field);
        bytes
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn text(field: &'static str, bytes: &[u8]) -> Result<String, NeffError> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(NeffError::Text { field })?;
    let text = std::str::from_utf8(&bytes[..end]).ok().filter(|text| printable(text));
    text.map(str::to_owned).ok_or(NeffError::Text { field })
}

fn field<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], NeffError> {
    if text.len() >= N {
        return Err(NeffError::TooLong { field, bytes: text.len() });
    }
    if !printable(text) {
        return Err(NeffError::Text { field });
    }
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(data: &[u8]) -> Vec<u8> {
        [&Header::for_data("a name", data).write().unwrap()[..], data].concat()
    }

    /// Every field at its documented place, each with bytes of its own.
    #[test]
    fn fields_are_where_the_documentation_puts_them() {
        let header = Header {
            pkg_version: 0x0101,
            data_size: 3,
            neff_version_major: 0x0202,
            neff_version_minor: 0x0303,
            build_version: "build".into(),
            num_tpb: 0x0404,
            hash: [5; 32],
            uuid: [6; 16],
            name: "name".into(),
            requested_tpb_count: 0x0707,
            tpb_per_node: [8; 64],
            feature_bits: 0x0909,
            lnc_size: 0x0a0a,
        };
        let bytes = header.write().unwrap();
        let places: [(usize, &[u8]); 15] = [
            (0, &[1, 1, 0, 0, 0, 0, 0, 0]),
            (8, &[0, 4, 0, 0, 0, 0, 0, 0]),
            (16, &[3, 0, 0, 0, 0, 0, 0, 0]),
            (24, &[2, 2, 0, 0, 0, 0, 0, 0]),
            (32, &[3, 3, 0, 0, 0, 0, 0, 0]),
            (40, b"build\0"),
            (168, &[4, 4, 0, 0]),
            (172, &[5; 32]),
            (204, &[6; 16]),
            (220, b"name\0"),
            (476, &[7, 7, 0, 0]),
            (480, &[8; 64]),
            (544, &[9, 9, 0, 0, 0, 0, 0, 0]),
            (552, &[10, 10, 0, 0]),
            (556, &[0; 468]),
        ];
        for (at, expected) in places {
            assert_eq!(&bytes[at..at + expected.len()], expected, "at {at}");
        }
        assert_eq!(Header::parse(&[&bytes[..], b"abc"].concat()), Ok(header));
    }

    #[test]
    fn damage_is_named() {
        let whole = file(b"archive");
        assert_eq!(Header::parse(&[]), Err(NeffError::Short(0)));
        assert_eq!(Header::parse(&whole[..1023]), Err(NeffError::Short(1023)));
        let cut = NeffError::DataSize { announced: 7, found: 6 };
        assert_eq!(Header::parse(&whole[..whole.len() - 1]), Err(cut));
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(Header::parse(&longer), Err(NeffError::DataSize { announced: 7, found: 8 }));
        let mut elf = whole.clone();
        elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        assert_eq!(Header::parse(&elf), Err(NeffError::HeaderSize(0)));
        let mut name = whole.clone();
        name[220] = 0xff;
        assert_eq!(Header::parse(&name), Err(NeffError::Text { field: "name" }));
        let mut endless = whole;
        endless[40..168].fill(b'x');
        assert_eq!(Header::parse(&endless), Err(NeffError::Text { field: "neff_build_version" }));
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let long = Header::for_data(&"x".repeat(256), b"");
        assert_eq!(long.write(), Err(NeffError::TooLong { field: "name", bytes: 256 }));
        assert!(Header::for_data(&"x".repeat(255), b"").write().is_ok());
        assert_eq!(Header::for_data("a\nb", b"").write(), Err(NeffError::Text { field: "name" }));
    }

    #[test]
    fn a_hash_is_read_by_its_length() {
        let mut header = Header::for_data("n", b"archive");
        assert_eq!(header.check_hash(b"archive"), HashCheck::Sha256);
        assert_eq!(header.check_hash(b"Archive"), HashCheck::Other);
        header.hash[16..].fill(0);
        assert_eq!(header.check_hash(b"archive"), HashCheck::Short);
        header.hash = [0; 32];
        assert_eq!(header.check_hash(b"archive"), HashCheck::Absent);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            numbers in any::<[u64; 4]>(), small in any::<[u32; 3]>(), hash in any::<[u8; 32]>(), uuid in any::<[u8; 16]>(),
            nodes in any::<[u8; 32]>(), name in "[ -~]{0,255}", build in "\\PC{0,31}", data in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut tpb_per_node = [0; 64];
            tpb_per_node[7..39].copy_from_slice(&nodes);
            let header = Header {
                pkg_version: numbers[0], data_size: data.len() as u64, neff_version_major: numbers[1],
                neff_version_minor: numbers[2], build_version: build, num_tpb: small[0], hash, uuid, name,
                requested_tpb_count: small[1], tpb_per_node, feature_bits: numbers[3], lnc_size: small[2],
            };
            prop_assert_eq!(Header::parse(&[&header.write().unwrap()[..], &data].concat()), Ok(header));
        }

        #[test]
        fn no_bytes_make_it_panic(start in prop::collection::vec(any::<u8>(), 0..1100)) {
            let _ = Header::parse(&start);
        }
    }
}
