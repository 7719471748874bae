package secure

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The peer of a benchmark is another process, so that the CPU time of this one
// is that of one side: of Conn on a loop, or of a tls.Conn in a goroutine.
const peerEnv = "SECURE_TEST_PEER"

// bePeer is the whole of the other process.
func bePeer(addr string) {
	cfg := clientConfig()
	cfg.InsecureSkipVerify = true
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	b := make([]byte, 128<<10)
	n, _ := strconv.Atoi(os.Args[len(os.Args)-1])
	switch os.Args[len(os.Args)-2] {
	case "send":
		for ; n > 0; n -= len(b) {
			c.Write(b)
		}
		c.CloseWrite()
		io.Copy(io.Discard, c)
	case "sink":
		io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, b)
	case "echo":
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			c.Write(b[:n])
		}
	}
}

type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// against runs f over a connection with a peer that does what mode says, first
// as Conn on a loop, then as a tls.Conn.
func against(b *testing.B, mode string, n int, f func(b *testing.B, c duplex)) {
	serverConfig := serverConfig()
	serverConfig.ClientAuth = tls.NoClientCert
	b.Run("secure", func(b *testing.B) {
		p := startPeer(b, mode, n)
		file, err := p.File()
		if err != nil {
			b.Fatal(err)
		}
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		file.Close()
		p.Close()
		if err := unix.SetNonblock(fd, true); err != nil {
			b.Fatal(err)
		}
		l := start(b)
		do(b, l, func() {
			c := Server(l.Adopt(fd), nil, serverConfig)
			if err := c.Handshake(time.Time{}); err != nil {
				b.Error(err)
				return
			}
			measured(b, c, f)
		})
	})
	b.Run("crypto-tls", func(b *testing.B) {
		c := tls.Server(startPeer(b, mode, n), serverConfig)
		if err := c.Handshake(); err != nil {
			b.Fatal(err)
		}
		measured(b, c, f)
	})
}

func measured(b *testing.B, c duplex, f func(b *testing.B, c duplex)) {
	before := cpu()
	b.ResetTimer()
	f(b, c)
	b.StopTimer()
	b.ReportMetric(float64(cpu()-before)/float64(b.N)/1e3, "cpu-µs/op")
	c.Close()
}

func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func startPeer(b *testing.B, mode string, n int) *net.TCPConn {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$", mode, strconv.Itoa(n*b.N))
	cmd.Env = append(os.Environ(), peerEnv+"="+ln.Addr().String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Wait() })
	c, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// An op of the bulk benchmarks is 1 MiB: 1 µs of it is about 1 ms per GiB.
func BenchmarkBulkIn(b *testing.B) {
	against(b, "send", 1<<20, func(b *testing.B, c duplex) {
		b.SetBytes(1 << 20)
		if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 128<<10)); err != nil || n != int64(b.N)<<20 {
			b.Error(n, err)
		}
	})
}

func BenchmarkBulkOut(b *testing.B) {
	against(b, "sink", 0, func(b *testing.B, c duplex) {
		b.SetBytes(1 << 20)
		chunk := make([]byte, 128<<10)
		for range b.N * 8 {
			if _, err := c.Write(chunk); err != nil {
				b.Error(err)
				return
			}
		}
		c.CloseWrite()
	})
}

func BenchmarkPingPong(b *testing.B) {
	for _, size := range []int{100, 10 << 10} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			against(b, "echo", 0, func(b *testing.B, c duplex) {
				msg := make([]byte, size)
				for range b.N {
					if _, err := c.Write(msg); err != nil {
						b.Error(err)
						return
					}
					if _, err := io.ReadFull(c, msg); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
