package meshfile

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"path/filepath"
)

// certificate is where the file names one: problems whose text is the path.
type certificate struct{ cert, key Problem }

// CheckFiles reads the files that a mesh file names: the certificate of
// security.ssl and its key, if that is enabled. Their paths count from the
// directory of the mesh file. The error is Problems.
func (f *File) CheckFiles(dir string, read func(path string) ([]byte, error)) error {
	c := f.certificate
	if c == nil {
		return nil
	}
	cert, bad := c.cert.read(dir, read)
	key, alsoBad := c.key.read(dir, read)
	if problems := append(bad, alsoBad...); len(problems) > 0 {
		return problems
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		p := c.cert
		p.Text = "certificate " + c.cert.Text + " and key " + c.key.Text + ": " + err.Error()
		return Problems{p}
	}
	return nil
}

func (p Problem) read(dir string, read func(string) ([]byte, error)) ([]byte, Problems) {
	path := p.Text
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := read(path)
	if err == nil {
		return data, nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	p.Text = path + ": " + err.Error()
	return nil, Problems{p}
}
