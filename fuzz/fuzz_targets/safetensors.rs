#![no_main]

gelora_fuzz::target!("safetensors");
