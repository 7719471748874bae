package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func newDeleteCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KIND NAME", Short: "Remove an endpoint or a rule",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q is not a kind that can be deleted; these are endpoint, external-service, traffic-rule, security-rule", args[0])
			}
			return fmt.Errorf("a kind is missing: endpoint, external-service, traffic-rule, security-rule")
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	ofService := func(call func(*api.Client) deleteOfService) deleter {
		return func(cmd *cobra.Command, c *api.Client, arg string) error {
			name, id, err := serviceAndID(arg)
			if err != nil {
				return err
			}
			return call(c)(cmd.Context(), name, id)
		}
	}
	cmd.AddCommand(
		deleteCommand(opt, "endpoint", "[NAMESPACE/]SERVICE/ID", "an endpoint",
			ofService(func(c *api.Client) deleteOfService { return c.Deregister })),
		deleteCommand(opt, "external-service", "[NAMESPACE/]SERVICE", "a service outside the mesh",
			func(cmd *cobra.Command, c *api.Client, arg string) error {
				return deleteExternalService(cmd.Context(), c, arg)
			}),
		deleteCommand(opt, "traffic-rule", "[NAMESPACE/]SERVICE/ID", "a traffic rule",
			ofService(func(c *api.Client) deleteOfService { return c.DeleteTrafficRule })),
		deleteCommand(opt, "security-rule", "ID", "a security rule",
			func(cmd *cobra.Command, c *api.Client, id string) error {
				return c.DeleteSecurityRule(cmd.Context(), id)
			}),
	)
	return cmd
}

type (
	deleter         func(cmd *cobra.Command, c *api.Client, arg string) error
	deleteOfService func(ctx context.Context, name policy.ServiceName, id string) error
)

func deleteCommand(opt *options, kind, arg, what string, f deleter) *cobra.Command {
	return &cobra.Command{
		Use: kind + " " + arg, Aliases: []string{kind + "s"}, Short: "Remove " + what, Args: cobra.ExactArgs(1),
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			if err := f(cmd, c, args[0]); err != nil {
				return err
			}
			return opt.print(cmd, map[string]string{"deleted": kind, "name": args[0]}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s %s deleted\n", kind, args[0])
				return err
			})
		}),
	}
}

// serviceAndID reads "namespace/service/id", or "service/id" in the namespace
// default.
func serviceAndID(arg string) (policy.ServiceName, string, error) {
	parts := strings.Split(arg, "/")
	if len(parts) == 2 {
		parts = append([]string{"default"}, parts...)
	}
	if len(parts) != 3 || parts[2] == "" {
		return policy.ServiceName{}, "", usagef("%q is not [NAMESPACE/]SERVICE/ID", arg)
	}
	name := policy.ServiceName{Namespace: parts[0], Name: parts[1]}
	if err := name.Validate(); err != nil {
		return name, "", usagef("%q: %v", arg, err)
	}
	return name, parts[2], nil
}
