package dns

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestHostsThatMayBeOutside(t *testing.T) {
	for query, want := range map[string]string{
		"api.example.com.": "api.example.com", "API.Example.com": "api.example.com", "reviews.": "", ".": "", "": "",
		"7.2.0.192.in-addr.arpa.": "", "_http._tcp.example.com.": "", "a b.com.": "",
	} {
		if got, ok := hostName(query); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v", query, got, ok)
		}
	}
}

func TestANameOutsideIsAnsweredWithItsServicesAddress(t *testing.T) {
	var asked atomic.Int64
	s := serve(t, Config{LookupHost: func(_ context.Context, host string) (v4, v6 netip.Addr, ok bool) {
		asked.Add(1)
		return reviewsV4, reviewsV6, host == "api.example.com"
	}})
	ask := func(name string, typ dnsmessage.Type) dnsmessage.Message {
		t.Helper()
		q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var m dnsmessage.Message
		if err := m.Unpack(s.respond(t.Context(), raw, true)); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := ask("API.example.com.", dnsmessage.TypeA)
	if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != reviewsV4.As4() {
		t.Errorf("%+v", m)
	}
	// A record of another kind would lead past the proxy.
	if m := ask("api.example.com.", 65); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
		t.Errorf("HTTPS: %+v", m)
	}
	asked.Store(0)
	if m := ask("reviews.", dnsmessage.TypeA); len(m.Answers) != 1 || asked.Load() != 0 {
		t.Errorf("a mesh name is asked for outside: %+v", m)
	}
	if m := ask("www.example.com.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeRefused { // there is no upstream
		t.Errorf("%+v", m)
	}
}
