# What the programs are made of, from `cargo metadata --filter-platform` and cargo's list of what is built.
#
#   $form       "cyclonedx": a CycloneDX 1.5 document. "auditable": the list that cargo-auditable embeds (.dep-v0).
#   $checksums  {"NAME VERSION": SHA-256}
#   $built      ["NAME VERSION"]: each crate that is built, for the program or for what makes it
#   $linked     ["NAME VERSION"]: those of the program
#
# No time and no serial number: the same sources give the same bytes.

(.packages | map({key: .id, value: .}) | from_entries) as $packages
| (.resolve.nodes | map({key: .id, value: .deps}) | from_entries) as $edges
| .resolve.root as $root
| def key: $packages[.] | "\(.name) \(.version)";
  # cargo's own word on what these features build: the resolution has what tests alone need, too.
  def listed($keys): key as $key | any($keys[]; . == $key);
  def needed: [$edges[.][] | select(any(.dep_kinds[]; .kind != "dev")) | .pkg | select(listed($built))] | unique;
  def purl: $packages[.] | "pkg:cargo/\(.name)@\(.version)";
  def sourced: $packages[.].source // "local" | if startswith("registry+") then "crates.io" else . end;
  def component: . as $id | $packages[.] | {
      type: (if $id == $root then "application" else "library" end),
      "bom-ref": ($id | purl), name, version, description,
      # Not in the program, but in what makes it: build scripts and macros, and what they need.
      scope: (if $id | listed($linked) then "required" else "excluded" end),
      hashes: [$checksums[$id | key] // empty | {alg: "SHA-256", content: .}],
      licenses: [{expression: (.license | gsub("/"; " OR "))}],
      purl: ($id | purl),
      externalReferences: [.repository // empty | {type: "vcs", url: .}]
    } | with_entries(select(.value != null and .value != []));
  ($packages | keys_unsorted | map(select(listed($built))) | sort_by(key)) as $all
| if $form == "auditable" then
    {packages: [$all[] as $id | $packages[$id] | {name, version, source: ($id | sourced)}
      + (if $id | listed($linked) then {} else {kind: "build"} end)
      + ([$id | needed[] as $need | $all | index($need)] | sort | if . == [] then {} else {dependencies: .} end)
      + (if $id == $root then {root: true} else {} end)]}
  else
    {bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
      metadata: {component: ($root | component | del(.scope))},
      components: [$all[] | select(. != $root) | component],
      dependencies: [$all[] | {ref: purl, dependsOn: (needed | map(purl) | sort)}]}
  end
