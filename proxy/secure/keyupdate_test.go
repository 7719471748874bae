package secure

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/proxy/loop"
)

// keys are one direction of a TLS 1.3 connection after its handshake, RFC 8446
// section 7.3, because crypto/tls does not send key updates.
type keys struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func (k *keys) set(secret []byte) {
	k.secret, k.seq = secret, 0
	block, err := aes.NewCipher(expand(secret, "key", 16))
	if err != nil {
		panic(err)
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	k.iv = expand(secret, "iv", 12)
}

func (k *keys) update() { k.set(expand(k.secret, "traffic upd", 32)) }

// expand is HKDF-Expand-Label without a context.
func expand(secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		panic(err)
	}
	return out
}

func (k *keys) nonce() []byte {
	n := bytes.Clone(k.iv)
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^k.seq)
	k.seq++
	return n
}

const (
	typeAlert     = 21
	typeHandshake = 22
	typeData      = 23
)

func (k *keys) seal(kind byte, b []byte) []byte {
	header := []byte{typeData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(b)+1+16))
	return k.aead.Seal(header, k.nonce(), append(bytes.Clone(b), kind), header)
}

func (k *keys) open(record []byte) (kind byte, b []byte, err error) {
	b, err = k.aead.Open(nil, k.nonce(), record[headerBytes:], record[:headerBytes])
	if err != nil {
		return 0, nil, err
	}
	return b[len(b)-1], b[:len(b)-1], nil
}

// rawPeer is a TLS client that says what it likes.
type rawPeer struct {
	conn    net.Conn
	in, out keys
	updated int // how often we changed our keys
}

// meetRaw is meet with such a peer.
func meetRaw(t *testing.T, l *loop.Loop) (*Conn, *rawPeer) {
	t.Helper()
	var log bytes.Buffer
	theirs := clientConfig()
	theirs.KeyLogWriter, theirs.MinVersion = &log, tls.VersionTLS13
	s, peer := meetWith(t, l, serverConfig(), theirs)
	if got := peer.ConnectionState().CipherSuite; got != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("this test speaks TLS_AES_128_GCM_SHA256 only, not %s", tls.CipherSuiteName(got))
	}
	p := &rawPeer{conn: peer.NetConn()}
	for _, line := range strings.Split(log.String(), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		secret, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		switch f[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			p.out.set(secret)
		case "SERVER_TRAFFIC_SECRET_0":
			p.in.set(secret)
		}
	}
	return s, p
}

// askForKeys are key updates with update_requested.
func (p *rawPeer) askForKeys() []byte {
	b := p.out.seal(typeHandshake, []byte{24, 0, 0, 1, 1})
	p.out.update()
	return b
}

// read gives the data of the next record, or the alert as an error.
func (p *rawPeer) read() ([]byte, error) {
	header := make([]byte, headerBytes)
	for {
		if _, err := io.ReadFull(p.conn, header); err != nil {
			return nil, err
		}
		record := append(bytes.Clone(header), make([]byte, binary.BigEndian.Uint16(header[3:]))...)
		if _, err := io.ReadFull(p.conn, record[headerBytes:]); err != nil {
			return nil, err
		}
		kind, b, err := p.in.open(record)
		switch {
		case err != nil:
			return nil, err
		case kind == typeAlert:
			return nil, tls.AlertError(b[1])
		case kind == typeHandshake && b[0] == 24:
			p.in.update()
			p.updated++
		case kind == typeData:
			return b, nil
		}
	}
}

// readAll reads until close_notify.
func (p *rawPeer) readAll() ([]byte, error) {
	var all []byte
	for {
		b, err := p.read()
		if err == tls.AlertError(0) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, b...)
	}
}

func TestAKeyUpdateIsAnsweredWithoutWaitingForIt(t *testing.T) {
	l := start(t)
	s, peer := meetRaw(t, l)
	peer.conn.Write(append(peer.askForKeys(), peer.out.seal(typeData, []byte("under new keys"))...))
	do(t, l, func() {
		b := make([]byte, 100)
		if n, err := s.Read(b); string(b[:n]) != "under new keys" || err != nil {
			t.Errorf("read %q, %v", b[:n], err)
		}
		s.Write([]byte("so am I"))
	})
	if b, err := peer.read(); string(b) != "so am I" || err != nil || peer.updated != 1 {
		t.Errorf("the peer read %q, %v, after %d updates", b, err, peer.updated)
	}
	peer.conn.Write(peer.askForKeys())
	do(t, l, func() {
		if err := s.WaitRead(); err != nil {
			t.Error(err)
		}
		if _, err := s.TryRead(make([]byte, 1)); err != loop.ErrWouldBlock {
			t.Error(err)
		}
		s.Close()
	})
	if _, err := peer.readAll(); err != nil || peer.updated != 2 {
		t.Errorf("%v after %d updates", err, peer.updated)
	}
}

// What crypto/tls does by itself here would hold up the loop for ever: its Write
// waits with the lock held that its Read wants for the answer.
func TestAPeerThatAsksForKeysAndDoesNotReadHoldsUpNobody(t *testing.T) {
	l := start(t)
	s, peer := meetRaw(t, l)
	sent := random(8 << 20)
	do(t, l, func() {
		w := l.Spawn(func() {
			if n, err := s.Write(sent); n != len(sent) || err != nil {
				t.Error(n, err)
			}
			s.CloseWrite()
		})
		l.Yield()
		b := make([]byte, 100)
		for i := range 100 { // each is read while our write waits
			what := fmt.Sprint("message ", i)
			peer.conn.Write(append(peer.askForKeys(), peer.out.seal(typeData, []byte(what))...))
			if n, err := s.Read(b); string(b[:n]) != what || err != nil {
				t.Errorf("read %q, %v", b[:n], err)
			}
		}
		if w.Ended() {
			t.Error("8 MiB went without a reader")
		}
	})
	if got, err := peer.readAll(); err != nil || !bytes.Equal(got, sent) || peer.updated != 100 {
		t.Errorf("the peer read %d bytes, %v, after %d updates", len(got), err, peer.updated)
	}
}

func TestAPeerThatNeverReadsTheAnswersItAsksForIsCutOff(t *testing.T) {
	l := start(t)
	s, peer := meetRaw(t, l)
	do(t, l, func() {
		w := l.Spawn(func() { s.Write(make([]byte, tooMuch)) })
		l.Yield()
		var err error
		asked := 0
		for ; err == nil && asked < 10000; asked++ {
			peer.conn.Write(append(peer.askForKeys(), peer.out.seal(typeData, []byte("x"))...))
			_, err = s.Read(make([]byte, 100))
		}
		if err != errUnread || asked < 100 {
			t.Errorf("%v after %d", err, asked)
		}
		s.Reset()
		w.Wait()
	})
}

func TestAFatalAlertWhileAWriteWaitsHoldsUpNobody(t *testing.T) {
	l := start(t)
	for name, say := range map[string]func(p *rawPeer) []byte{
		"from the peer": func(p *rawPeer) []byte { return p.out.seal(typeAlert, []byte{2, 80}) },
		"to the peer":   func(p *rawPeer) []byte { return p.out.seal(typeHandshake, []byte{99, 0, 0, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			s, peer := meetRaw(t, l)
			do(t, l, func() {
				var written error
				w := l.Spawn(func() { _, written = s.Write(make([]byte, tooMuch)) })
				l.Yield()
				peer.conn.Write(say(peer))
				if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Error(err)
				}
				if w.Ended() {
					t.Error("the write ended:", written)
				}
				s.Close()
				w.Wait()
				if written == nil {
					t.Error("everything went without a reader")
				}
			})
		})
	}
}

func TestNothingIsSentAfterCloseNotify(t *testing.T) {
	l := start(t)
	s, peer := meetRaw(t, l)
	do(t, l, func() {
		s.CloseWrite()
		peer.conn.Write(append(peer.askForKeys(), peer.out.seal(typeData, []byte("x"))...))
		if n, err := s.Read(make([]byte, 10)); n != 1 || err != nil {
			t.Error(n, err)
		}
		peer.conn.Write(peer.out.seal(typeAlert, []byte{1, 0}))
		if _, err := s.Read(make([]byte, 10)); err != io.EOF {
			t.Error(err)
		}
		s.Close()
	})
	if _, err := peer.readAll(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(peer.conn); len(b) != 0 || err != nil {
		t.Errorf("then came %x, %v", b, err)
	}
}

func TestAMessageInTwoRecordsAndEmptyRecordsDoNotMakeAReadWait(t *testing.T) {
	l := start(t)
	s, peer := meetRaw(t, l)
	ask := []byte{24, 0, 0, 1, 1}
	first, second := peer.out.seal(typeHandshake, ask[:2]), peer.out.seal(typeHandshake, ask[2:])
	peer.out.update()
	do(t, l, func() {
		for _, record := range [][]byte{first, second, peer.out.seal(typeData, nil)} {
			peer.conn.Write(record)
			if err := s.WaitRead(); err != nil {
				t.Error(err)
			}
			if _, err := s.TryRead(make([]byte, 1)); err != loop.ErrWouldBlock {
				t.Error(err)
			}
		}
		peer.conn.Write(peer.out.seal(typeData, []byte("x")))
		if n, err := s.Read(make([]byte, 10)); n != 1 || err != nil {
			t.Error(n, err)
		}
		s.Close()
	})
	if _, err := peer.readAll(); err != nil || peer.updated != 1 {
		t.Errorf("%v after %d updates", err, peer.updated)
	}
}
