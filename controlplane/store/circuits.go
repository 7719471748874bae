package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// CircuitOrder is what an operator wants of the circuits of one endpoint.
type CircuitOrder struct {
	policy.CircuitOrder         // its Number is etcd's revision
	Until               float64 // Unix seconds; 0 is until another order
}

// circuitRecord is an order as stored.
type circuitRecord struct {
	State string  `json:"state"` // of policy.CircuitOrder
	Until float64 `json:"until,omitempty"`
}

// resetKept is how long an order to begin anew stays: proxies that are away for
// less than this hear of it. One that hears of it later has been away for longer
// than a circuit stays open.
const resetKept = 10 * time.Minute

// OrderCircuit stores what the circuits of an endpoint are to do in all proxies
// that call it: policy.CircuitOpen or CircuitClose for as long as ttl says (0 is
// until another order), or policy.CircuitReset, which ends such an order and has
// them begin anew. ErrNotFound when there is no such endpoint and no order for it.
func (s *Store) OrderCircuit(ctx context.Context, name policy.ServiceName, id, order string, ttl time.Duration) error {
	what := fmt.Sprintf("order for the circuits of endpoint %s of %s", id, name)
	if name.Validate() != nil || !validID(id) {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	record := circuitRecord{State: order}
	if order == policy.CircuitReset {
		record.State, ttl = "", resetKept
	}
	return s.write(ctx, what, func(ctx context.Context) error {
		key := s.keys.circuit(name, id)
		_, known := s.storedEndpoint(name, id)
		if !known {
			return s.dropOrder(ctx, name, id, order)
		}
		var opts []clientv3.OpOption
		if ttl > 0 {
			resp, err := s.client.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
			if err != nil {
				return explain(err)
			}
			opts = append(opts, clientv3.WithLease(resp.ID))
			record.Until = float64(s.cfg.Now().Add(ttl).UnixMilli()) / 1000
		}
		op, err := put(key, record, opts...)
		if err != nil {
			return err
		}
		_, err = s.commit(ctx, []clientv3.Cmp{exists(s.keys.endpoint(name, id))}, []clientv3.Op{op})
		if err == errRace { //nolint:errorlint // never wrapped
			return s.catchUp(ctx, s.keys.endpoint(name, id))
		}
		return err
	})
}

// dropOrder removes the order for an endpoint that is no more; nothing else can
// be ordered of it.
func (s *Store) dropOrder(ctx context.Context, name policy.ServiceName, id, order string) error {
	svc := s.State().Services.Get(name)
	if order != policy.CircuitReset || svc == nil || svc.Circuits[id] == (CircuitOrder{}) {
		return ErrNotFound
	}
	_, err := s.transact(ctx, nil, []clientv3.Op{clientv3.OpDelete(s.keys.circuit(name, id))})
	return err
}
