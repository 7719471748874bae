package store

import (
	"cmp"
	"encoding/json"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/weir-mesh/weir/policy"
)

// endpointRecord is an endpoint as stored.
type endpointRecord struct {
	policy.Endpoint
	ProxyID string `json:"proxy_id,omitempty"`
	Meshed  bool   `json:"meshed,omitempty"`
	File    bool   `json:"file,omitempty"`
}

// trafficRecord is a traffic rule as stored.
type trafficRecord struct {
	policy.TrafficRule
	place
}

// securityRecord is a security rule as stored.
type securityRecord struct {
	policy.SecurityRule
	place
}

// place is where a rule stands among the others. A rule that was stored by
// itself stands where it was created, and its record says nothing.
type place struct {
	// Order is the revision that the rule was first created at, where that is not
	// the record's: a rule that was removed and is brought back.
	Order int64 `json:"order,omitempty"`
	// Index tells rules apart that were created together.
	Index int `json:"index,omitempty"`
}

// at gives the place of a rule that was read from a key.
func (p place) at(kv *mvccpb.KeyValue) place {
	return place{Order: cmp.Or(p.Order, kv.CreateRevision), Index: p.Index}
}

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.Order, o.Order), cmp.Compare(p.Index, o.Index))
}

// stored is a resource as it is kept, with what its value does not tell.
type stored struct {
	policy.Stored
	place
	lease   int64
	proxyID string
	meshed  bool
	file    bool // the mesh file keeps it
}

// key gives the key of a resource; "" for names that cannot be.
func (k keys) resource(ref policy.Ref) string {
	var key string
	want := unknownKey
	switch ref.Kind {
	case policy.KindEndpoint:
		key, want = k.endpoint(ref.Name(), ref.ID), endpointKey
	case policy.KindTrafficRule:
		key, want = k.rule(ref.Name(), ref.ID), ruleKey
	case policy.KindSecurityRule:
		key, want = k.security(ref.ID), securityKey
	case policy.KindConfig:
		return k.settings()
	}
	if got, _, _ := k.parse(key); got != want || want == unknownKey {
		return ""
	}
	return key
}

// readResource gives what a key holds; kv is nil for one that does not exist.
func readResource(ref policy.Ref, kv *mvccpb.KeyValue) (stored, error) {
	var out stored
	if kv == nil {
		if ref.Kind == policy.KindConfig {
			set := policy.DefaultSettings()
			out.Value = &policy.Resource{Settings: &set}
		}
		return out, nil
	}
	value, err := ref.Kind.Decode(kv.Value)
	if err != nil {
		return out, fmt.Errorf("%s as stored: %w", ref, err)
	}
	var beside struct {
		place
		ProxyID string `json:"proxy_id"`
		Meshed  bool   `json:"meshed"`
		File    bool   `json:"file"`
	}
	if err := json.Unmarshal(kv.Value, &beside); err != nil {
		return out, fmt.Errorf("%s as stored: %w", ref, err)
	}
	return stored{
		Stored: policy.Stored{Value: value, Version: kv.ModRevision}, place: beside.at(kv), lease: kv.Lease,
		proxyID: beside.ProxyID, meshed: beside.Meshed, file: beside.File,
	}, nil
}

// record gives the record of a resource. A rule keeps its place.
func (s *stored) record() any {
	switch v := s.Value; {
	case v.Endpoint != nil:
		return endpointRecord{Endpoint: *v.Endpoint, Meshed: s.meshed, File: s.file}
	case v.Traffic != nil:
		return trafficRecord{*v.Traffic, s.place}
	case v.Security != nil:
		return securityRecord{*v.Security, s.place}
	default:
		return v.Settings
	}
}
