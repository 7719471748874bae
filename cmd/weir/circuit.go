package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func newCircuitCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "circuit ORDER SERVICE ENDPOINT", Short: "Open, close or reset an endpoint's circuits in all proxies",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q is not an order; these are open, close, reset", args[0])
			}
			return fmt.Errorf("an order is missing: open, close or reset")
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(
		circuitCommand(opt, policy.CircuitOpen, "opened", "Have no proxy send anything to an endpoint"),
		circuitCommand(opt, policy.CircuitClose, "closed", "Have all proxies send to an endpoint whatever it answers"),
		circuitCommand(opt, policy.CircuitReset, "reset", "Close an endpoint's circuits and let them go by what they see"),
	)
	return cmd
}

func circuitCommand(opt *options, order, done, short string) *cobra.Command {
	var namespace string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: order + " [NAMESPACE/]SERVICE ENDPOINT", Short: short, Args: cobra.ExactArgs(2),
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			name, err := policy.ParseServiceName(args[0], namespace)
			if err != nil {
				return usagef("%v", err)
			}
			if cmd.Flags().Changed("for") && ttl < time.Second {
				return usagef("--for %v: an order holds for a second at least", ttl)
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			if err := c.OrderCircuit(cmd.Context(), name, args[1], order, ttl); err != nil {
				return err
			}
			return opt.print(cmd, map[string]string{"service": name.String(), "endpoint": args[1], "circuits": done}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "circuits of endpoint %s of %s %s\n", args[1], name, done)
				return err
			})
		}),
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of a SERVICE that is named without one")
	if order != policy.CircuitReset {
		cmd.Flags().DurationVar(&ttl, "for", 0, "how long the order holds; without it, until another")
	}
	return cmd
}

func getCircuits(g *getting) error {
	names, id, err := g.target()
	if err != nil {
		return err
	}
	all := []api.EndpointCircuits{}
	for _, name := range names {
		list, err := g.Circuits(g.ctx, name)
		if err != nil {
			return err
		}
		if id != "" {
			if list, err = only(list, "endpoint", name.String()+"/"+id, func(e *api.EndpointCircuits) bool { return e.ID == id }); err != nil {
				return err
			}
		}
		all = append(all, list...)
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for i := range all {
			rows = append(rows, circuitRows(&all[i])...)
		}
		return table(w, "NAMESPACE SERVICE ENDPOINT ORDER UNTIL PROXY STATE FAILURES SINCE OUTLIER", rows)
	})
}

// circuitRows are an endpoint's circuits, one for each proxy that has something to
// tell.
func circuitRows(e *api.EndpointCircuits) [][]string {
	row := []string{e.Namespace, e.ServiceName, e.ID, cmp.Or(e.Order, "-"), when(e.Until)}
	if len(e.Proxies) == 0 {
		return [][]string{append(row, "all", "closed", "", "", "")}
	}
	var rows [][]string
	for _, p := range e.Proxies {
		outlier := "-"
		if p.Outlier {
			outlier = "left out"
		}
		rows = append(rows, append(row[:5:5], p.Proxy, p.State, strconv.Itoa(p.Failures), when(p.Since), outlier))
	}
	return rows
}
