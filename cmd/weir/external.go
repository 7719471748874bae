package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// getExternalServices shows the endpoints outside the mesh.
func getExternalServices(g *getting) error {
	names, id, err := g.target()
	if err != nil {
		return err
	}
	if g.asDocuments() {
		return g.exportAll(names, id, g.ExportExternalServices)
	}
	all := []policy.Endpoint{}
	for _, name := range names {
		list, err := g.Endpoints(g.ctx, name)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Host != "" && (id == "" || e.ID == id) {
				all = append(all, e)
			}
		}
	}
	if len(all) == 0 && g.name != "" {
		return fmt.Errorf("there is no external service %q", g.name)
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, e := range all {
			roots := ""
			if e.TLS != "" {
				roots = "system"
			}
			if e.CA != "" {
				roots = "own"
			}
			rows = append(rows, []string{e.Namespace, e.ServiceName, e.ID, e.Host, strconv.Itoa(e.Port), e.Protocol, e.TLS, roots})
		}
		return table(w, "NAMESPACE SERVICE ID HOST PORT PROTOCOL TLS ROOTS", rows)
	})
}

// addressOf is where an endpoint answers.
func addressOf(e *policy.Endpoint) string {
	if e.Host != "" {
		return e.Host + ":" + strconv.Itoa(e.Port)
	}
	return e.Addr().String()
}

// deleteExternalService removes one endpoint outside the mesh, or all of a
// service.
func deleteExternalService(ctx context.Context, c *api.Client, arg string) error {
	parts := strings.Split(arg, "/")
	if len(parts) == 1 {
		parts = append([]string{"default"}, parts...)
	}
	if len(parts) < 2 || len(parts) > 3 {
		return usagef("%q is not [NAMESPACE/]SERVICE or NAMESPACE/SERVICE/ID", arg)
	}
	name := policy.ServiceName{Namespace: parts[0], Name: parts[1]}
	if err := name.Validate(); err != nil {
		return usagef("%q: %v", arg, err)
	}
	list, err := c.Endpoints(ctx, name)
	if err != nil {
		return err
	}
	found := false
	for _, e := range list {
		if e.Host == "" || len(parts) == 3 && e.ID != parts[2] {
			continue
		}
		found = true
		if err := c.Deregister(ctx, name, e.ID); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("there is no external service %q", arg)
	}
	return nil
}
