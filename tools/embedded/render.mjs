// Renders SVG documents to 64x64 RGB on white.
//
//   node render.mjs JOBS OUT
//
// JOBS is a JSON list of SVG documents; OUT receives 64*64*3 bytes for each, in order. A document
// that resvg cannot parse gives an error on stderr and exit status 3; some documents make resvg
// abort the whole process (status 134), which is why the caller renders in chunks and halves a chunk
// that fails. No fonts are loaded, so that every machine draws the same.
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const [jobs, out] = process.argv.slice(2)
const { Resvg } = createRequire(process.cwd() + '/')('@resvg/resvg-js')
const SIZE = 64
const documents = JSON.parse(readFileSync(jobs, 'utf8'))
const pixels = Buffer.alloc(documents.length * SIZE * SIZE * 3)

documents.forEach((svg, index) => {
  try {
    const image = new Resvg(svg, {
      background: '#ffffff',
      fitTo: { mode: 'width', value: SIZE },
      font: { loadSystemFonts: false },
    }).render()
    if (image.width !== SIZE || image.height !== SIZE)
      throw new Error(`is ${image.width}x${image.height}`)
    const rgba = image.pixels
    for (let p = 0, o = index * SIZE * SIZE * 3; p < rgba.length; p += 4) {
      pixels[o++] = rgba[p]
      pixels[o++] = rgba[p + 1]
      pixels[o++] = rgba[p + 2]
    }
  } catch (error) {
    console.error(`document ${index}: ${error}`)
    process.exit(3)
  }
})
writeFileSync(out, pixels)
