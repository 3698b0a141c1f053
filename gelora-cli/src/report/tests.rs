use serde_json::json;

use super::*;

/// Returns a measurement of two layers with every part of the page. `id` and `n` describe the first state, which is
/// constant for `id` 0.
pub fn sample(id: f64, n: usize) -> RanksFile {
    let at = |scale: usize, id: f64| json!({"scale": scale, "id": id, "interval": [id - 1.0, id + 1.0], "draws": 1});
    let state = |name: &str, id: f64, n: usize| {
        json!({"name": name, "estimator": "two-nn-fit", "id": id, "interval": [id - 1.0, id + 1.0],
            "confidence": 0.95, "n": n, "duplicates": 3, "near_copies": 1, "id_with_near_copies": 2.5,
            "decimation": [at(100, id), at(50, id), at(25, id)], "gride": [at(2, id), at(4, id)],
            "plateau": {"id": id, "interval": [1.0, 2.0], "scales": [100, 25]}})
    };
    let layer = |layer: usize, rank: usize| {
        json!({"layer": layer, "delta": 1.5, "error": 0.5, "interval": [-0.5, 3.0], "upper": 2.5, "rank": rank,
            "alpha": 2.0})
    };
    let policies = json!([{"name": "gelora", "rounding": "ceil", "ranks": [3, 1], "adapter_parameters": 400},
        {"name": "budget", "parameters": 900, "rounding": "ceil", "ranks": [4, 3], "adapter_parameters": 890},
        {"name": "uniform", "rank": 8, "ranks": [8, 8], "adapter_parameters": 1600}]);
    serde_json::from_value(json!({
        "model": "a <b> & \"c\"", "data": "d", "pool": "mean", "samples": 100, "dtype": "f32", "seed": 0,
        "granularity": "block", "scale": 100,
        "policy": {"name": "gelora", "rounding": "ceil", "min_rank": 1, "rank_multiple": 1, "alpha_ratio": 2.0,
            "confidence": 0.95},
        "states": [state("embeddings", id, n), state("after layer 0", 5.0, 100), state("after layer 1", 6.0, 100)],
        "layers": [layer(0, 3), layer(1, 1)], "modules": {"m.<0>": {"rank": 3, "alpha": 6.0}}, "parameters": 400,
        "policies": policies, "warnings": ["first < warning", "second warning"],
        "stability": {"resamples": 2, "sizes": [{"n": 50, "ranks": [[2, 4], [1, 1]]}], "verdict": "The verdict."},
        "serve": {"server": "vllm", "max_lora_rank": 8},
    }))
    .unwrap()
}

/// Returns the names of the tags left open at the end, after checking that every tag closes the one opened last.
pub fn unclosed_tags(page: &str) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    let body = &page[page.find("<body").unwrap()..];
    for tag in body.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name: String = inside.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if inside.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(&name[..]), "in {inside}");
        } else if !inside.ends_with('/') {
            open.push(name);
        }
    }
    open.retain(|name| name != "html");
    open
}

#[test]
fn ranks_json_is_read_as_it_was_written() {
    let written = serde_json::to_string(&sample(4.0, 100)).unwrap();
    let read: RanksFile = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
}

#[test]
fn the_page_is_well_formed_and_complete() {
    let page = html(&sample(4.0, 100)).replace("</body></html>", "</body>");
    assert!(unclosed_tags(&page).is_empty());
    let expected = [
        "Ranks 1 to 3 in 1 modules",
        "25 % of what uniform 8 takes",
        "first &lt; warning",
        "second warning",
        "The verdict.",
        "--max-lora-rank 8",
        "m.&lt;0&gt;",
        "a &lt;b&gt; &amp; &quot;c&quot;",
        "within the noise",
    ];
    for text in expected {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""));
    // The page fetches nothing: its only address is a link.
    assert_eq!(page.matches("http").count(), 1);
    assert!(!page.contains("<script") && !page.contains("@import") && !page.contains("url("));
}

#[test]
fn a_constant_state_leaves_a_gap() {
    let page = html(&sample(0.0, 1));
    assert!(page.contains("The same point for every example"));
    assert!(!page.contains("NaN"));
}

#[test]
fn modules_with_ranks_of_their_own_are_shown_with_their_directions() {
    let mut value = serde_json::to_value(sample(4.0, 100)).unwrap();
    let directions = json!({"number": 2.25, "interval": [1.5, 3.0]});
    value["policy"].as_object_mut().unwrap().remove("rounding");
    value["policy"]["name"] = json!("gradient");
    value["policy"]["parameters"] = json!(900);
    value["layers"][0]["mean_rank"] = json!(2.5);
    value["layers"][0]["directions"] = directions.clone();
    value["modules"]["m.<0>"]["directions"] = directions;
    value["modules"]["m.1"] = json!({"rank": 9, "alpha": 18.0});
    value["policies"].as_array_mut().unwrap().push(json!({"name": "gradient", "parameters": 900, "ranks": [3, 1],
        "mean_ranks": [2.5, 1.0], "adapter_parameters": 890}));
    let mut ranks: RanksFile = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&ranks).unwrap(), value);
    let page = html(&ranks).replace("</body></html>", "</body>");
    assert!(unclosed_tags(&page).is_empty());
    let expected =
        ["Ranks 3 to 9 in 2 modules", "Directions of gradients", "1.5 to 3.0", "mean rank 2.5", "gradient 900"];
    for text in expected {
        assert!(page.contains(text), "{text}");
    }
    for words in ["directions, 95 %", "2.2 (1.5 .. 3.0)", "2.5", "mean rank"] {
        assert!(text::table(&ranks).contains(words), "{words}");
    }
    assert!(text::policies(&ranks).contains("2.5 1") && text::policies(&ranks).contains("gradient 900*"));
    assert!(text::summary(&ranks).contains("from 3 to 9, by the policy gradient 900. Such ranks do not follow"));
    ranks.ranks.policy.policy = Policy::Prune { parameters: 900, trained_rank: 12 };
    assert!(text::summary(&ranks).contains("what a cut leaves of the uniform rank 12"));
    // A server allocates the largest rank of a module, which is above the mean of every layer.
    let serve = Serve::new(gelora_lora::ranks::Server::Vllm, &ranks).unwrap();
    assert_eq!(serve.max_lora_rank, 16);
}
