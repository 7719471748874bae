package store

import (
	"iter"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// Services are the services of a State, by name. The value is immutable; the
// next State shares all that did not change with it. The zero value is empty.
type Services struct {
	table[serviceName, *Service]
}

type serviceName policy.ServiceName

func (k serviceName) slot() uint8 { return slotOf(k.Namespace, "/", k.Name) }

func (k serviceName) compare(o serviceName) int {
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

func (svc *Service) tableKey() serviceName { return serviceName(svc.Name) }

// Get gives the service of a name; nil when there is none.
func (s Services) Get(name policy.ServiceName) *Service { return s.get(serviceName(name)) }

// All gives every service, in no order that means anything.
func (s Services) All() iter.Seq2[policy.ServiceName, *Service] {
	return func(yield func(policy.ServiceName, *Service) bool) {
		for svc := range s.all() {
			if !yield(svc.Name, svc) {
				return
			}
		}
	}
}

// ServicesOf makes Services of some; of two with the same name the later one.
func ServicesOf(services ...*Service) Services {
	d := Services{}.draft()
	for _, svc := range services {
		d.put(svc)
	}
	return Services{d.table}
}

// Proxies are the proxies of a State, by id. The value is immutable, as that of
// Services is: thousands of proxies that come at once make as many States. The
// zero value is empty.
type Proxies struct {
	table[proxyID, *Proxy]
}

type proxyID string

func (k proxyID) slot() uint8 { return slotOf(string(k)) }

func (k proxyID) compare(o proxyID) int { return strings.Compare(string(k), string(o)) }

func (p *Proxy) tableKey() proxyID { return proxyID(p.ID) }

// Get gives the proxy of an id; nil when there is none.
func (p Proxies) Get(id string) *Proxy { return p.get(proxyID(id)) }

// All gives every proxy, in no order that means anything.
func (p Proxies) All() iter.Seq[*Proxy] { return p.all() }

// ProxiesOf makes Proxies of some; of two with the same id the later one.
func ProxiesOf(proxies ...*Proxy) Proxies {
	d := Proxies{}.draft()
	for _, p := range proxies {
		d.put(p)
	}
	return Proxies{d.table}
}
