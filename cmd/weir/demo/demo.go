// Package demo runs a small mesh and shows what it does.
package demo

import (
	"context"
	"io"
)

type Config struct {
	Keep bool
	Out  io.Writer
}

func Run(ctx context.Context, cfg Config) error { return nil }
