package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
)

// sinceFlag is how far back a command looks.
func sinceFlag(cmd *cobra.Command, since *time.Duration) {
	cmd.Flags().DurationVar(since, "since", time.Hour, "how far back to look, 24h at most")
}

// tellElsewhere says what an answer does not hold.
func tellElsewhere(control string, elsewhere []string) {
	if len(elsewhere) > 0 {
		fmt.Fprintf(os.Stderr, "weir: shown is what the proxies attached to %s told; ask %s (--server) for the others\n", control, strings.Join(elsewhere, ", "))
	}
}

func newGetFlowsCommand(opt *options) *cobra.Command {
	var q api.FlowQuery
	var since time.Duration
	cmd := &cobra.Command{
		Use: "flows", Aliases: []string{"flow"}, Short: "Show what proxies counted of the calls between services", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			list, err := c.Flows(cmd.Context(), since, q)
			if err != nil {
				return err
			}
			tellElsewhere(list.Control, list.Elsewhere)
			return opt.print(cmd, list, func(w io.Writer) error { return printFlows(w, &list) })
		}),
	}
	sinceFlag(cmd, &since)
	f := cmd.Flags()
	f.StringVarP(&q.Namespace, "namespace", "n", "", "only those from or to this namespace")
	f.StringVar(&q.Source, "source", "", "only those of a caller, SERVICE or NAMESPACE/SERVICE")
	f.StringVar(&q.Destination, "destination", "", "only those to a service, SERVICE or NAMESPACE/SERVICE")
	f.IntVar(&q.Limit, "limit", 5000, "how many to show, the most frequent; 50000 at most")
	f.StringVar(&q.Verdict, "verdict", "", "allowed or denied")
	f.StringVar(&q.Direction, "direction", "", "inbound: with the verdict, as the server's proxy saw it; outbound: with the route, as the caller's did")
	return cmd
}

func printFlows(w io.Writer, list *api.FlowList) error {
	var rows [][]string
	for i := range list.Flows {
		f := &list.Flows[i]
		rows = append(rows, append(flowCells(f), strconv.FormatUint(f.Calls, 10), strconv.FormatUint(f.Errors, 10), f.Direction, decided(f), encryption(f)))
	}
	if err := table(w, "SOURCE DESTINATION METHOD PATH CALLS ERRORS SEEN VERDICT ENCRYPTION", rows); err != nil || list.More == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "%d more flows, less frequent, are not shown (--limit)\n", list.More)
	return err
}

// flowCells name a flow.
func flowCells(f *api.Flow) []string {
	method := f.Method
	if method == "" {
		method = "(" + f.Protocol + ")"
	}
	return []string{f.Source.String(), f.Address(), method, f.Path}
}

// decided is what was decided about a flow, and by which rule.
func decided(f *api.Flow) string {
	if f.Direction == "outbound" {
		text := "to " + f.Routed.String()
		if f.Subset != "" {
			text += "[" + f.Subset + "]"
		}
		if f.Route != "" {
			text += " by " + f.Route
		}
		return text
	}
	text := f.Verdict
	switch {
	case f.Rule != "" && f.Verdict == "allowed":
		text += " by " + f.Rule
	case f.Rule != "":
		text += " (" + f.Reason + " " + f.Rule + ")"
	default:
		text += " (" + f.Reason + ")"
	}
	return text
}

func encryption(f *api.Flow) string {
	if f.Why == "" {
		return f.Encryption
	}
	return f.Encryption + " (" + f.Why + ")"
}
