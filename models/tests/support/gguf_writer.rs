//! Writes GGUF files, well formed or not: counts and offsets can be set to anything.

/// A file under construction.
#[derive(Clone)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    /// In place of the true count.
    pub tensor_count: Option<u64>,
    /// In place of the true count.
    pub value_count: Option<u64>,
    /// What data and offsets are padded to.
    pub alignment: u64,
    pub values: Vec<(Vec<u8>, Vec<u8>)>,
    pub tensors: Vec<TensorEntry>,
}

/// A tensor's description and bytes.
#[derive(Clone)]
pub struct TensorEntry {
    pub name: Vec<u8>,
    /// Innermost first, as the format has them.
    pub dims: Vec<u64>,
    pub kind: u32,
    /// In place of the true offset.
    pub offset: Option<u64>,
    pub bytes: Vec<u8>,
}

impl GgufWriter {
    pub fn new(architecture: &str) -> GgufWriter {
        let writer = GgufWriter {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            value_count: None,
            alignment: 32,
            values: Vec::new(),
            tensors: Vec::new(),
        };
        writer.with("general.architecture", string(architecture))
    }

    pub fn with(mut self, key: &str, value: Vec<u8>) -> GgufWriter {
        self.values.push((key.as_bytes().to_vec(), value));
        self
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) {
        let dims = shape.iter().rev().map(|dim| *dim as u64).collect();
        self.tensors.push(TensorEntry { name: name.as_bytes().to_vec(), dims, kind, offset: None, bytes });
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.value_count.unwrap_or(self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            out.extend(bytes(key));
            out.extend(value);
        }
        let align = self.alignment.max(1);
        let mut next = 0u64;
        for tensor in &self.tensors {
            out.extend(bytes(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next = (next + tensor.bytes.len() as u64).next_multiple_of(align);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(align as usize), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

/// A length and bytes, as keys and names are stored.
pub fn bytes(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

pub fn u32(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn f32(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn string(value: &str) -> Vec<u8> {
    [8u32.to_le_bytes().to_vec(), bytes(value.as_bytes())].concat()
}

pub fn strings(values: &[&str]) -> Vec<u8> {
    let mut out = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
    out.extend((values.len() as u64).to_le_bytes());
    out.extend(values.iter().flat_map(|value| bytes(value.as_bytes())));
    out
}
