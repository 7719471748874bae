package main

import (
	"context"
	"strconv"
	"strings"
)

// scaleRate is the fixed rate of the scale runs. As fast as possible would show
// something else: with more connections a busy proxy finds more to do at each
// wake-up, and each request seems cheaper.
const scaleRate = 2000

// scaleConns measures one rate over few and many connections.
func scaleConns(without []string) work {
	w := work{
		name: "scale-conns", title: "HTTP/1.1 at a fixed 2 000 requests/s, spread over more and more connections",
		without: without, slow: true, figures: []figure{{key: "growth", unit: "× from fewest to most"}},
	}
	w.measure = func(ctx context.Context, s *stage, sub *subject, t tempo) (cell, error) {
		out := cell{}
		for _, n := range t.conns {
			from, l, err := s.place(sub, throughOne, plainPort, load{mode: "http", conns: n, rate: scaleRate, warm: t.warm, length: t.length})
			if err != nil {
				return nil, err
			}
			got, err := s.run(ctx, from, &l)
			if err != nil {
				return nil, err
			}
			c, err := perUnit(got, l.mode)
			if err != nil {
				return nil, err
			}
			out[strconv.Itoa(n)+" conns"] = c["cpu"]
			out["errors"] += c["errors"]
		}
		out["growth"] = out[strconv.Itoa(t.conns[len(t.conns)-1])+" conns"] / out[strconv.Itoa(t.conns[0])+" conns"]
		return out, nil
	}
	return w
}

// scaleServices measures one rate over as many connections each time, to few and
// to many services.
func scaleServices() work {
	var addresses []string
	w := work{
		name: "scale-services", title: "HTTP/1.1 at a fixed 2 000 requests/s over as many connections each time, to more and more services",
		only: []string{"weir"}, slow: true, figures: []figure{{key: "growth", unit: "× from fewest to most"}},
	}
	w.measure = func(ctx context.Context, s *stage, sub *subject, t tempo) (cell, error) {
		most := t.services[len(t.services)-1]
		if addresses == nil {
			var err error
			if addresses, err = s.addServices(ctx, most); err != nil {
				return nil, err
			}
		}
		out := cell{}
		for _, n := range t.services {
			from, l, err := s.place(sub, throughOne, scalePort, load{mode: "http", conns: most, rate: scaleRate, warm: t.warm, length: t.length})
			if err != nil {
				return nil, err
			}
			l.targets, l.backend = strings.Join(addresses[:n], ","), s.scale.Pid()
			got, err := s.run(ctx, from, &l)
			if err != nil {
				return nil, err
			}
			c, err := perUnit(got, l.mode)
			if err != nil {
				return nil, err
			}
			out[strconv.Itoa(n)+" services"] = c["cpu"]
			out["errors"] += c["errors"]
		}
		out["growth"] = out[strconv.Itoa(most)+" services"] / out[strconv.Itoa(t.services[0])+" services"]
		return out, nil
	}
	return w
}
