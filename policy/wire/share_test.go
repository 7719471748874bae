package wire

import (
	"reflect"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestDemandsAndSharesArriveAsTheyWereSent(t *testing.T) {
	ref := policy.LimitRef{Service: name, Rule: "r", Name: "most"}
	demands := []policy.Demand{{Limit: ref, Rate: 1.5, Used: 2}, {Limit: policy.LimitRef{Service: name, Name: "default"}, Keys: []policy.KeyDemand{{Key: 1 << 63, Rate: 3, Used: 4}}}}
	if got := throughWire(t, &Figures{Demands: FromDemands(demands)}, &Figures{}).PolicyDemands(); !reflect.DeepEqual(got, demands) {
		t.Errorf("demands are %+v", got)
	}
	shares := []policy.Share{{Limit: ref, Requests: 7}, {Limit: ref, Requests: 1, Keys: []policy.KeyShare{{Key: 1 << 63, Requests: 5}}}}
	if got := throughWire(t, &AttachResponse{Shares: FromShares(shares)}, &AttachResponse{}).PolicyShares(); !reflect.DeepEqual(got, shares) {
		t.Errorf("shares are %+v", got)
	}
}

// A rule that is wrong is refused as a whole, in an Inbound as in a Service.
func TestAnInboundWithAWrongRouteIsRefused(t *testing.T) {
	in := &Inbound{Name: FromName(name), MtlsMode: "strict", Routes: []*TrafficRule{{Id: "r", MatchPath: "nowhere"}}}
	if _, err := in.Policy(); err == nil {
		t.Error("taken")
	}
}
