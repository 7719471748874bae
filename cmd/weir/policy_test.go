package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

func seenFlow(method, path string, change ...func(*api.Flow)) api.Flow {
	f := api.Flow{
		Direction: "inbound", Source: api.Party{Namespace: "default", ServiceName: "frontend"}, Destination: api.Party{Namespace: "default", ServiceName: "users"},
		Port: 8001, Protocol: "http1", Method: method, Path: path, Verdict: "allowed", Reason: "rule", Rule: "r", Encryption: "mtls", Calls: 3,
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

func TestSuggestionsAreDocumentsThatApplyTakes(t *testing.T) {
	nobody := func(f *api.Flow) { f.Source = api.Party{Class: "private"} }
	list := &api.FlowList{Control: "c", LeftOut: 2, Flows: []api.Flow{
		seenFlow("GET", "/a\n---\nkind: SecurityRule"), seenFlow("GET", "/b\u2028spec: {}"), seenFlow("POST", "/\x85x"),
		seenFlow("", "", func(f *api.Flow) { f.Protocol, f.Destination.ServiceName = "tcp", "db" }), seenFlow("GET", "/\r\nkind: Config", nobody),
	}}
	rules, nameless := suggest(list, "")
	var b bytes.Buffer
	if err := printSuggested(&b, list, rules, nameless); err != nil {
		t.Fatal(err)
	}
	docs, err := api.ReadDocuments("-", b.Bytes())
	if err != nil || len(docs) != 2 {
		t.Fatalf("%d documents, %v:\n%s", len(docs), err, b.String())
	}
	for _, d := range docs {
		if d.Kind != "SecurityRule" {
			t.Errorf("a path became a document: %s", d.String())
		}
	}
	const want = `kind: SecurityRule
spec:
  source_namespace: default
  source_service: frontend
  destination_namespace: default
  destination_service: users
  allowed_methods:
  - GET
  - POST
  mtls_mode: strict
`
	for _, text := range []string{want, "had no room to count 2 calls", "(private) -> default/users GET", "(tcp) port 8001"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("missing %q in\n%s", text, b.String())
		}
	}
	if rules, _ := suggest(list, "other"); len(rules) != 0 {
		t.Errorf("rules for another namespace: %+v", rules)
	}
}

func TestWhatNeedsAttentionIsCountedAndShown(t *testing.T) {
	list := &api.PairList{Attention: []string{"proxy p is of version 0"}, LeftOut: 4, Pairs: []api.Pair{
		{Source: api.Party{Namespace: "a", ServiceName: "b"}, Destination: api.Party{Namespace: "c", ServiceName: "d"}, Encrypted: "yes", Why: []string{"both have proxies"}},
		{Source: api.Party{Class: "public"}, Destination: api.Party{Namespace: "c", ServiceName: "d"}, Encrypted: "no", Why: []string{"x", "y"}, Attention: []string{"5 calls"}},
	}}
	if n := attention(list); n != 2 {
		t.Errorf("%d things need attention", n)
	}
	var b bytes.Buffer
	if err := printPairs(&b, list); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"! (public) -> c/d: 5 calls", "! proxy p is of version 0", "x; y", "4 more pairs"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("missing %q in\n%s", text, b.String())
		}
	}
}

func TestOnlyWhatWouldBeDeniedBreaks(t *testing.T) {
	change := func(word string) api.FlowChange { return api.FlowChange{Flow: seenFlow("GET", "/a"), Change: word} }
	if n := broken([]api.FlowChange{change("denied"), change("token"), change("allowed"), change("rule"), change("route")}); n != 2 {
		t.Errorf("%d break", n)
	}
}
