// Package meshfile reads a mesh's configuration file, mesh-config.yml, and follows
// its changes. Resolving the host names in it and putting it in force are left to
// others.
package meshfile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"

	"github.com/weir-mesh/weir/policy"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 1 << 20

// File is a mesh file that was read and found valid.
type File struct {
	// Digest tells one content from another: the start of its SHA-256, in hex.
	Digest string
	// Settings is a patch for policy.Settings.Merge with all that the file names,
	// the settings of its services under "namespace/name" included.
	Settings json.RawMessage
	// Services are those that the file has a section for, in order of their names.
	Services []policy.ServiceName
	// Instances are where they answer, in the order of the services.
	Instances []Instance
	// Warnings name what the file asks for and does not get.
	Warnings Problems

	certificate *certificate // nil where the file asks for none
}

// Instance is one instance of a service: an endpoint whose address may still have
// to be found.
type Instance struct {
	// Host is as the url has it: an address, or a name in lower case.
	Host string
	// Endpoint is the instance without ID and IP.
	Endpoint policy.Endpoint

	path string // in the file
}

// Addr gives the address where Host says it by itself: an IP address, or
// localhost, which is 127.0.0.1 (RFC 6761 section 6.3).
func (i *Instance) Addr() (netip.Addr, bool) {
	if i.Host == "localhost" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	a, err := netip.ParseAddr(i.Host)
	return a.Unmap(), err == nil
}

// Prefix is how the ids of all the instance's endpoints begin: its host and port.
func (i *Instance) Prefix() string {
	if a, err := netip.ParseAddr(i.Host); err == nil {
		return netip.AddrPortFrom(a.Unmap(), uint16(i.Endpoint.Port)).String()
	}
	return i.Host + ":" + portText(i.Endpoint.Port)
}

// EndpointAt gives the endpoint of the instance at one of its addresses. Its id is
// the instance's host and port, with the address where a name has led to it, so
// that the same file and addresses give the same ids on every control plane.
func (i *Instance) EndpointAt(a netip.Addr) policy.Endpoint {
	e := i.Endpoint
	e.IP, e.ID = a.Unmap().String(), i.Prefix()
	if _, fixed := i.Addr(); !fixed {
		e.ID += "@" + e.IP
	}
	return e
}

// Parse reads a file's content; name is what errors call the file. The error is
// Problems: all that is wrong with it, in the order of the file. Whether the files
// that it names are there is for CheckFiles.
func Parse(name string, data []byte) (*File, error) {
	doc, err := readDocument(name, data)
	if err != nil {
		return nil, err
	}
	r := &reader{place: doc.place, services: map[policy.ServiceName]bool{}, from: map[string]string{}}
	out := r.read(doc.tree)
	if len(r.problems) > 0 {
		return nil, r.listed(r.problems)
	}
	out.Warnings = r.listed(r.warnings)
	sum := sha256.Sum256(data)
	out.Digest = hex.EncodeToString(sum[:6])
	return out, nil
}

// Is tells whether a content is meant to be a mesh file, and not documents for
// weir apply: it begins with the key "mesh".
func Is(data []byte) bool {
	doc, err := readDocument("", data)
	if err != nil {
		return startsWithMesh(data)
	}
	_, ok := doc.tree["mesh"]
	return ok
}

// reader collects what is read from one file and what is wrong with it.
type reader struct {
	*place
	problems, warnings Problems

	services map[policy.ServiceName]bool
	from     map[string]string // a setting's path in the patch → where in the file it comes from
	out      File
}

func (r *reader) read(doc map[string]any) *File {
	for _, key := range sortedKeys(doc) {
		if key != "mesh" {
			r.wrong(key, "unknown key%s", nearest(key, []string{"mesh"}))
		}
	}
	v, ok := doc["mesh"]
	if !ok {
		r.wrong("", `"mesh" is missing: a mesh file is "mesh:" with services, security, observability, resilience and load_balancing below it`)
		return nil
	}
	mesh, ok := r.object("mesh", v)
	if !ok {
		return nil
	}
	patch := map[string]any{}
	for key, v := range mesh {
		if key != "services" {
			patch[key] = v
		}
	}
	services := map[string]any{}
	if v, ok := mesh["services"]; ok {
		services = r.readServices(v)
	}
	if len(services) > 0 {
		patch["services"] = services
	}
	r.readSettings(patch)
	return &r.out
}
