package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/policy"
)

// revoking is what a revocation is about: an identity or a serial number.
type revoking struct{ identity, serial string }

func (r *revoking) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.identity, "identity", "", "NAMESPACE/SERVICE: all its certificates and join tokens")
	cmd.Flags().StringVar(&r.serial, "serial", "", "serial number of one certificate, hexadecimal; and the join token that it was got by")
	cmd.MarkFlagsMutuallyExclusive("identity", "serial")
	cmd.MarkFlagsOneRequired("identity", "serial")
}

func (r *revoking) revocation() (out policy.Revocation, err error) {
	if r.serial != "" {
		if out.Serial, err = policy.ParseSerial(r.serial); err != nil {
			return out, usagef("--serial: %v", err)
		}
		return out, nil
	}
	if out.Identity, err = policy.ParseServiceName(r.identity, "default"); err != nil {
		return out, usagef("--identity: %v", err)
	}
	return out, nil
}

func newRevokeCommand(opt *options) *cobra.Command {
	var what revoking
	var ttl time.Duration
	var reason string
	cmd := &cobra.Command{
		Use: "revoke --identity NAMESPACE/SERVICE | --serial SERIAL", Short: "Take trust away from a service or a certificate, and cut its connections",
		Args:    cobra.NoArgs,
		Example: "  weir revoke --identity shop/cart --reason 'key was in a log'\n  weir revoke list\n  weir revoke lift --identity shop/cart",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			r, err := what.revocation()
			if err != nil {
				return err
			}
			if r.Reason = reason; cmd.Flags().Changed("for") && ttl < time.Second {
				return usagef("--for %v: a revocation holds for a second at least", ttl)
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			stored, err := c.Revoke(cmd.Context(), r, ttl)
			if err != nil {
				return err
			}
			return opt.print(cmd, stored, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is revoked until %s\n", &r, when(stored.Until))
				return err
			})
		}),
	}
	what.flags(cmd)
	cmd.Flags().DurationVar(&ttl, "for", 0, "how long it holds; without it, until all that it names has ended by itself (a year)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who look at the list")
	cmd.AddCommand(newRevokeListCommand(opt), newRevokeLiftCommand(opt))
	return cmd
}

func newRevokeListCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what is revoked", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			list, err := c.Revocations(cmd.Context())
			if err != nil {
				return err
			}
			return opt.print(cmd, list, func(w io.Writer) error {
				var rows [][]string
				for _, r := range list {
					p := policy.Revocation{Serial: r.Serial, Identity: policy.ServiceName{Namespace: r.Namespace, Name: r.ServiceName}}
					rows = append(rows, []string{p.String(), when(r.Since), when(r.Until), r.Reason})
				}
				return table(w, "REVOKED SINCE UNTIL REASON", rows)
			})
		}),
	}
}

func newRevokeLiftCommand(opt *options) *cobra.Command {
	var what revoking
	cmd := &cobra.Command{
		Use: "lift --identity NAMESPACE/SERVICE | --serial SERIAL", Short: "End a revocation: what it named is trusted again", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			r, err := what.revocation()
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			if err := c.Lift(cmd.Context(), r.ID()); err != nil {
				return err
			}
			return opt.print(cmd, map[string]string{"lifted": r.ID()}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is revoked no more\n", &r)
				return err
			})
		}),
	}
	what.flags(cmd)
	return cmd
}
